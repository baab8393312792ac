"""Sends JSON Lines from standard input to Thalweg as frames.

    client.py HOST PORT [PRODUCER]

Needs `msgpack` from PyPI. Exits with 1 unless every record was acknowledged.
With PRODUCER, a name for the input, the same input may be sent again: what is
stored already is not stored twice. The rules are in docs/protocol.md.
"""

import json
import socket
import sys
import threading

import msgpack

MAX_IN_FLIGHT = 4096
count = {"read": 0, "ack": 0, "error": 0}
room = threading.Semaphore(MAX_IN_FLIGHT)
closed = threading.Event()


def receive(answers):
    try:
        while prefix := answers.read(4):
            answer = msgpack.unpackb(answers.read(int.from_bytes(prefix, "big")))
            frames = {"ack": answer.get("count"), "error": 1}.get(answer["type"])
            if answer["type"] not in ("ack", "welcome"):
                print(answer, file=sys.stderr)
            if frames:
                count[answer["type"]] += frames
                room.release(frames)
    except (OSError, ValueError) as cause:
        print(f"the connection broke: {cause}", file=sys.stderr)
    closed.set()
    room.release()  # a sender waiting for room must learn that none will come


def frame(value):
    payload = msgpack.packb(value)
    return len(payload).to_bytes(4, "big") + payload


def send(sock, lines, producer=None):
    if producer:  # the first line of the input has the number 0
        sock.sendall(frame({"thalweg": 1, "producer": producer, "epoch": 0, "sequence": 0}))
    for line in filter(str.strip, lines):
        record = frame(json.loads(line))
        count["read"] += 1
        room.acquire()
        if closed.is_set():
            return
        sock.sendall(record)
    sock.shutdown(socket.SHUT_WR)  # nothing more to send; answers are still read


with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as sock:
    receiver = threading.Thread(target=receive, args=[sock.makefile("rb")], daemon=True)
    receiver.start()
    try:
        send(sock, sys.stdin, *sys.argv[3:])
    except OSError as cause:
        print(f"the connection broke: {cause}", file=sys.stderr)
    receiver.join()

print(f"acked {count['ack']} errors {count['error']}")
sys.exit(count["ack"] != count["read"])
