"""Sends events with fluent-logger from PyPI: fluent_logger.py PORT EVENTS.

A third each with the blocking sender, with nanoseconds, and with the sender
that has a thread of its own. Exits with 1 unless every event was sent.
"""

import sys

from fluent import asyncsender, sender

port, events = int(sys.argv[1]), int(sys.argv[2])
senders = {
    "sync": sender.FluentSender("py", host="127.0.0.1", port=port),
    "nano": sender.FluentSender("py", host="127.0.0.1", port=port, nanosecond_precision=True),
    "async": asyncsender.FluentSender("py", host="127.0.0.1", port=port, queue_maxsize=events),
}
sent = 0
for n in range(events):
    label, logger = list(senders.items())[n % 3]
    time = 1714979289 + n + (0.25 if label == "nano" else 0)
    event = {"message": f"python event {n}", "n": n, "where": {"host": "b", "tags": ["x", None]}}
    sent += bool(logger.emit_with_time(label, time, event))
    if logger.last_error:
        print(logger.last_error)
for logger in senders.values():
    logger.close()
print(f"sent {sent}")
sys.exit(sent != events)
