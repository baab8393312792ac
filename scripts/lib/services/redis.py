"""Redis 7, with an append-only file: what it acknowledged outlives a kill."""

import socket

from . import packages
from .component import Component, program_version


class Redis(Component):
    name = "redis"
    programs = {"redis-server": "redis-server"}

    def command(self):
        return [packages.program("redis-server"), "--port", self.port, "--bind", "127.0.0.1",
                "--dir", self.data, "--appendonly", "yes", "--save", ""]

    def probe(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(b"PING\r\n")
                answer = connection.recv(64)
        except OSError as e:
            return str(e)
        # While it loads its file it answers -LOADING.
        return None if answer.startswith(b"+PONG") else answer.decode(errors="replace").strip()

    def version(self):
        version = program_version("redis-server", before="v=", after=" ")
        return None if version is None else f"Redis {version}"

    def variables(self):
        return {"THALWEG_TEST_REDIS": f"redis://127.0.0.1:{self.port}/"}
