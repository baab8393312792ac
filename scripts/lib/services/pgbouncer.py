"""PgBouncer in transaction mode before PostgreSQL.

Debian's own: 1.18 on bookworm. It is the strictest that people still have: it
follows no prepared statements (1.21 and later do), so what works here works
with every later one. Every database name is passed on, for each test has a
database of its own, and every role that PostgreSQL knows may enter.

A client that parses an unnamed statement and waits for the answer before it
binds, as sqlx does, must be in a transaction: else another client's statement
may be the one that is bound. That is so with the latest version, too.
"""

import signal

from . import packages
from .component import Component, program_version
from .postgres import Postgres
from .process import Failed, run

CONFIGURATION = """\
[databases]
* = host=127.0.0.1 port={postgres_port} auth_user=pgbouncer

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
pool_mode = transaction
auth_type = trust
auth_file = {data}/users
; Roles that tests made: all on 127.0.0.1 are trusted, so the name is enough.
auth_query = SELECT usename, '' FROM pg_user WHERE usename = $1
admin_users = postgres
; PostgreSQL takes 200 connections; each pair of database and role has a pool.
default_pool_size = 20
max_db_connections = 40
max_client_conn = 1000
server_idle_timeout = 10
; A PostgreSQL that was away is tried again at once, not after 15 s.
server_login_retry = 1
ignore_startup_parameters = extra_float_digits
log_connections = 0
log_disconnections = 0
"""


class PgBouncer(Component):
    name = "pgbouncer"
    requires = ("postgres",)
    programs = {"pgbouncer": "pgbouncer"}
    # Ends at once; its clients are cut off, PostgreSQL is none the wiser.
    stop_signal = signal.SIGTERM

    def prepare(self):
        (self.data / "users").write_text('"pgbouncer" ""\n"postgres" ""\n')
        (self.data / "pgbouncer.ini").write_text(CONFIGURATION.format(
            port=self.port, data=self.data, postgres_port=self.instance.port("postgres")))

    def command(self):
        return [packages.program("pgbouncer"), self.data / "pgbouncer.ini"]

    def probe(self):
        try:
            run([packages.postgres_folder() / "psql", "-XqAtc", "SELECT 1",
                 f"host=127.0.0.1 port={self.port} user=thalweg dbname=postgres "
                 "connect_timeout=5"], "psql through pgbouncer", seconds=10)
        except Failed as e:
            return str(e)
        return None

    def version(self):
        version = program_version("pgbouncer", before="PgBouncer ")
        return None if version is None else f"PgBouncer {version}, transaction mode"

    def variables(self):
        return {"THALWEG_TEST_PGBOUNCER": Postgres.url("thalweg", self.port)}
