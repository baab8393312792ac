"""What all components have in common."""

import shutil
import signal
import time

from . import instance as instances
from . import packages
from .process import POLL_SECONDS, Ended, Failed, Process, own_folder, run

PORT_SECONDS = 3


class Component:
    """One component of an instance: a daemon with a folder and an address.

    A subclass says how it is prepared, what is run, and how it is known to be
    ready. `lock`ing the instance is the caller's business.
    """

    name = ""
    requires = ()  # names of components that have to be up before
    programs = {}  # program to the Debian package that has it
    ready_seconds = 30
    stop_signal = signal.SIGTERM
    stop_seconds = 20

    def __init__(self, instance):
        self.instance = instance
        self.data = instance.dir / self.name
        self.process = Process(instance.dir, self.name)

    # For subclasses.

    def obtain(self):
        """Downloads what is not a Debian package."""

    def prepare(self):
        """Makes the folder and the files the daemon needs, if they are not
        there."""

    def command(self):
        """What is run, in the foreground."""
        raise NotImplementedError

    def probe(self):
        """None if the daemon answers, else why it does not."""
        raise NotImplementedError

    def complete(self):
        """What remains to be done once, when the daemon answers for the first
        time; safe to repeat."""

    def version(self):
        """Which version is installed, or None."""
        raise NotImplementedError

    def variables(self):
        """What tests need to know, by the name of the environment variable."""
        raise NotImplementedError

    # For the command.

    @property
    def port(self):
        return self.instance.port(self.name)

    @property
    def address(self):
        return None if self.port is None else f"127.0.0.1:{self.port}"

    def is_set_up(self):
        """Whether it was started and not stopped since: it runs, or crashed."""
        return self.process.pid_file.exists()

    def start(self):
        """Starts it and waits until it answers. Whether it had to be started."""
        started = not self.is_running()
        if started:
            own_folder(self.data)
            self.require_port(self.port)
            self.prepare()
            self.process.spawn(self.command())
            self.process.wait_ready(self.probe, self.ready_seconds)
        completed = self.data / "completed"
        if not completed.exists():
            self.complete()
            completed.touch()
        return started

    def is_running(self):
        """Whether it runs and answers; waits until it does."""
        if self.process.pid() is None:
            return False
        try:
            self.process.wait_ready(self.probe, self.ready_seconds)
        except Ended:
            return False  # somebody has just killed it
        return True

    def stop(self):
        """Stops it in good order. Whether it was running."""
        return self.process.stop(self.stop_signal, self.stop_seconds)

    def kill(self):
        """Ends it as a crash would. Whether it was running."""
        return self.process.kill()

    def purge(self):
        """Removes its data."""
        shutil.rmtree(self.data, ignore_errors=True)
        self.process.log.unlink(missing_ok=True)

    def state(self):
        """`up`, `down`, `crashed` (started, but gone) or `stuck` (no answer)."""
        if self.process.pid() is None:
            return "crashed" if self.is_set_up() else "down"
        return "up" if self.probe() is None else "stuck"

    def require_port(self, port):
        """Fails if a port is taken, and stays so: a program that has just been
        killed takes a moment to let go."""
        deadline = time.monotonic() + PORT_SECONDS
        while not instances.is_free(port):
            if time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
                continue
            raise Failed(f"{self.name}: port {port} of 127.0.0.1 is taken by a program that is "
                         f"not of the instance {self.instance.name}: end it, or have other ports "
                         "chosen (scripts/services down, then up)")


def program_version(name, *, before, after="\n"):
    """What `name --version` prints between two marks, or None if the program
    is not there."""
    path = packages.program(name)
    if path is None:
        return None
    return run([path, "--version"], name, seconds=20).partition(before)[2].partition(after)[0]
