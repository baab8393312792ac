"""A named set of components: its folder, its ports, its lock.

Everything of the instance NAME lies below `target/services/NAME`; what was
downloaded lies in `.cache/services` and is shared by all instances of a tree.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import socket
from pathlib import Path

from .process import Failed, service_user

TREE = Path(__file__).resolve().parents[3]

FIRST_PORT = 25400
BLOCK = 20
BLOCKS = 300  # up to 31400: below the ports that systems hand out themselves
PORTS = {"postgres": 0, "pgbouncer": 1, "postgres-bare": 2, "s3": 3, "redis": 4, "s3-mon": 5,
         "s3-osd-first": 6, "s3-osd-last": BLOCK - 1}


def enterable(path):
    """Whether the service user can enter a folder and all above it."""
    if service_user() is None:
        return True
    return all(p.stat().st_mode & 0o001 for p in [path, *path.parents])


def place(path):
    """Makes a folder of the tree that the service user can enter. In a tree
    below, say, /root it cannot: there the folder is a link into /var/tmp."""
    if not path.is_symlink():
        path.parent.mkdir(parents=True, exist_ok=True)
        if enterable(path.parent):
            path.mkdir(mode=0o755, exist_ok=True)
            return path
        digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
        target = Path(f"/var/tmp/thalweg-services-{digest}")
        target.mkdir(mode=0o755, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # somebody was faster
            path.symlink_to(target)
    elsewhere = path.resolve()
    elsewhere.mkdir(mode=0o755, exist_ok=True)
    if elsewhere.stat().st_uid != os.geteuid():
        raise Failed(f"{elsewhere} belongs to another user: remove it")
    return elsewhere


def downloads():
    """The folder of what was downloaded."""
    return place(TREE / ".cache" / "services")


@contextlib.contextmanager
def locked(path):
    """Holds a lock file; waits for whoever holds it."""
    with open(path, "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def machine_folder():
    """Where the instances of all trees of this user agree on ports."""
    folder = Path(f"/var/tmp/thalweg-ports-{os.geteuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.geteuid():
        raise Failed(f"{folder} belongs to another user: remove it")
    return folder


def is_free(port):
    """Whether nobody listens on a port of 127.0.0.1."""
    with socket.socket() as probe:
        # As the daemons do: a connection of before that lingers is no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Instance:
    """The instance named by THALWEG_SERVICES, else `default`."""

    def __init__(self, environ=os.environ):
        self.name = environ.get("THALWEG_SERVICES") or "default"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,40}", self.name):
            raise Failed(f"THALWEG_SERVICES={self.name}: letters, digits, '_', '-' and '.' only")
        self._wanted_base = environ.get("THALWEG_SERVICES_PORT") or None
        self.dir = place(TREE / "target" / "services") / self.name
        self._base_file = self.dir / "port"

    def exists(self):
        return self._base_file.exists()

    def create(self):
        """Makes the folder and settles the ports."""
        self.dir.mkdir(mode=0o755, exist_ok=True)
        if not self.exists() or self._wanted_base is not None or self._lost_its_ports():
            self._settle_base()

    def remove(self):
        """Gives the ports back and removes the folder."""
        base = self.base()
        if base is not None:
            machine = machine_folder()
            with locked(machine / "lock"):
                claim = machine / str(base)
                if claim.exists() and claim.read_text() == str(self.dir):
                    claim.unlink()
        shutil.rmtree(self.dir)

    def lock(self):
        """Held by commands that change the instance."""
        self.dir.mkdir(mode=0o755, exist_ok=True)
        return locked(self.dir / "lock")

    def base(self):
        """The first of the ports, or None before the first `up`."""
        try:
            return int(self._base_file.read_text())
        except FileNotFoundError:
            return None

    def port(self, name):
        base = self.base()
        return None if base is None else base + PORTS[name]

    def _settle_base(self):
        machine = machine_folder()
        with locked(machine / "lock"):
            if self._wanted_base is None:
                base = next((b for b in range(FIRST_PORT, FIRST_PORT + BLOCK * BLOCKS, BLOCK)
                             if self._may_have(b, machine)), None)
                if base is None:
                    raise Failed("no free block of ports: set THALWEG_SERVICES_PORT")
            else:
                base = self._wanted(self._wanted_base)
            (machine / str(base)).write_text(str(self.dir))
            self._base_file.write_text(f"{base}\n")

    def _lost_its_ports(self):
        """Whether others took ports of the block while the instance was down."""
        base = self.base()
        return (not any(self.dir.glob("*.pid"))
                and not all(is_free(p) for p in range(base, base + BLOCK)))

    def _wanted(self, text):
        if not text.isdigit() or not 1024 <= int(text) <= 65535 - BLOCK:
            raise Failed(f"THALWEG_SERVICES_PORT={text}: the first of {BLOCK} ports, from 1024")
        base = int(text)
        if self.base() not in (None, base) and any(self.dir.glob("*.pid")):
            raise Failed(f"the instance {self.name} has port {self.base()}, not {base}: "
                         "scripts/services down first")
        return base

    def _may_have(self, base, machine):
        """Whether a block belongs to no other instance and nobody listens in
        it. An instance that is down keeps its block until it is purged."""
        try:
            owner = Path((machine / str(base)).read_text())
            taken = owner != self.dir and (owner / "port").read_text().strip() == str(base)
        except FileNotFoundError:
            taken = False
        return not taken and all(is_free(p) for p in range(base, base + BLOCK))
