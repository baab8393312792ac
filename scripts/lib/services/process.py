"""One daemon: started in a session of its own, known by its pid file.

A pid file holds two lines: the process id, and the start time of that process
in clock ticks since boot, by which a reused id is told from the daemon.
"""

import os
import pwd
import signal
import subprocess
import time
from pathlib import Path

POLL_SECONDS = 0.03
LOG_TAIL_LINES = 15


class Failed(Exception):
    """A component cannot be had, started or reached; the message says why."""


class Ended(Failed):
    """A daemon ended while it was waited for."""


def service_user():
    """The user daemons run as: `nobody` if this is root (PostgreSQL and
    PgBouncer refuse root), else None, the caller."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def as_service_user():
    """The keyword arguments of `subprocess` that drop root."""
    user = service_user()
    if user is None:
        return {}
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def own_folder(path):
    """Makes a folder that only the service user can enter."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    user = service_user()
    if user is not None:
        os.chown(path, user.pw_uid, user.pw_gid)


def run(argv, what, *, seconds=120, text_input=None):
    """Runs a program to its end as the service user; returns its output."""
    try:
        done = subprocess.run(
            [str(a) for a in argv], input=text_input, capture_output=True, text=True,
            timeout=seconds, cwd="/", env=environment(), **as_service_user())
    except subprocess.TimeoutExpired as e:
        raise Failed(f"{what} took longer than {seconds} s") from e
    except OSError as e:
        raise Failed(f"{what}: {e}") from e
    if done.returncode != 0:
        raise Failed(f"{what} failed ({done.returncode}): {(done.stderr or done.stdout).strip()}")
    return done.stdout


def environment():
    """What daemons see of the environment: nothing of the caller's settings
    (PGPORT, REDISCLI_AUTH, CEPH_ARGS ... would all reach them)."""
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}


def stat_of(pid):
    """(state, parent, start time) of a process, or None if there is none."""
    try:
        # The name stands in parentheses and may itself hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], int(fields[1]), int(fields[19])


def descendants(pid):
    """Every living process below `pid`."""
    children = {}
    for entry in os.listdir("/proc"):
        stat = stat_of(int(entry)) if entry.isdigit() else None
        if stat is not None and stat[0] != "Z":
            children.setdefault(stat[1], []).append(int(entry))
    found, queue = [], [pid]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def alive(pid):
    """Whether a process exists and is not merely waiting to be reaped. While
    other threads of it are ending, its files and ports are still open."""
    stat = stat_of(pid)
    if stat is None:
        return False
    try:
        return stat[0] != "Z" or len(os.listdir(f"/proc/{pid}/task")) > 1
    except FileNotFoundError:
        return False


def working_in(folder):
    """The living processes whose working directory is `folder`."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.readlink(f"/proc/{entry}/cwd") == str(folder):
                found.append(int(entry))
        except OSError:
            pass  # gone, a zombie, or another user's
    return found


class Process:
    """The daemon whose pid file is `FOLDER/NAME.pid` and whose output goes to
    `FOLDER/NAME.log`."""

    def __init__(self, folder, name):
        self.name = name
        self.pid_file = folder / f"{name}.pid"
        self.log = folder / f"{name}.log"
        self._child = None
        self._log_start = 0

    def pid(self):
        """The id of the running daemon, or None."""
        try:
            pid, started = (int(line) for line in self.pid_file.read_text().split())
        except (FileNotFoundError, ValueError):
            return None
        stat = stat_of(pid)
        return pid if stat is not None and stat[2] == started and alive(pid) else None

    def spawn(self, argv):
        """Starts the daemon; it outlives this program."""
        with open(self.log, "ab") as log:
            self._log_start = log.tell()
            try:
                self._child = subprocess.Popen(
                    [str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    cwd="/", env=environment(), start_new_session=True, **as_service_user())
            except OSError as e:
                raise Failed(f"cannot start {self.name}: {e}") from e
        stat = stat_of(self._child.pid)
        started = stat[2] if stat is not None else 0
        # Published whole: a reader never sees half a pid.
        partial = self.pid_file.with_suffix(".pid.new")
        partial.write_text(f"{self._child.pid}\n{started}\n")
        partial.rename(self.pid_file)

    def wait_ready(self, probe, seconds):
        """Calls `probe` until it returns None; what it returns before is the
        reason given when `seconds` are over or the daemon has ended."""
        deadline = time.monotonic() + seconds
        while (reason := probe()) is not None:
            if self.pid() is None:
                raise Ended(f"{self.name}: it ended; {self.log_tail()}")
            if time.monotonic() > deadline:
                raise Failed(f"{self.name}: not ready after {seconds} s: {reason}; "
                             f"{self.log_tail()}")
            time.sleep(POLL_SECONDS)

    def log_tail(self):
        """The last lines the daemon wrote since it was started."""
        with open(self.log, "rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()
        return "\n".join([f"the end of {self.log}:",
                          *("    " + line for line in lines[-LOG_TAIL_LINES:])])

    def stop(self, stop_signal, seconds):
        """Asks the daemon to end; kills it if it does not in time. Whether it
        was running."""
        pid = self.pid()
        if pid is None:
            self.pid_file.unlink(missing_ok=True)
            return False
        os.kill(pid, stop_signal)
        if self._gone([pid], seconds):
            self.pid_file.unlink(missing_ok=True)
        else:
            self.kill()
        return True

    def kill(self):
        """Kills the daemon and every process below it with SIGKILL, as a crash
        would. Whether it was running. The pid file stays, as after a crash."""
        pid = self.pid()
        if pid is None:
            return False
        # Held first, so that it neither forks nor reaps while it is counted.
        os.kill(pid, signal.SIGSTOP)
        family = [pid, *descendants(pid)]
        for member in family:
            try:
                os.kill(member, signal.SIGKILL)
            except ProcessLookupError:
                pass
        if not self._gone(family, 10):
            raise Failed(f"{self.name}: a process of {family} survived SIGKILL for 10 s")
        return True

    def _gone(self, pids, seconds):
        deadline = time.monotonic() + seconds
        while any(alive(pid) for pid in pids):
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
        if self._child is not None:
            self._child.poll()
        return True
