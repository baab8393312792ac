"""S3: Ceph's radosgw over one monitor and one object daemon.

Of the servers that run without Docker it is the one that checks signatures
and checksums and lets exactly one of many concurrent conditional puts win.
What it does not do right: a correct `If-Match` put is answered 412, and
CompleteMultipartUpload ignores conditions.

Three daemons. `kill` ends the gateway only: objects are in the object daemon's
memory, saved to its folder when it is stopped in good order. If that daemon or
the monitor dies otherwise, everything is set up anew, and empty.
"""

import http.client
import json
import shutil
import signal
import sys
import uuid

from . import packages, sigv4
from .component import Component, program_version
from .process import Failed, Process, run

BUCKET = "thalweg"
KEY = "thalwegtestkey"
SECRET = "thalwegtestsecret"

CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}
public network = 127.0.0.0/8
ms bind ipv6 = false
ms bind msgr1 = false
ms bind port min = {osd_first}
ms bind port max = {osd_last}
auth cluster required = none
auth service required = none
auth client required = none
; Without authentication there is no key for the encrypted mode, and the gateway
; would be refused over and over.
ms mon cluster mode = crc
ms mon service mode = crc
ms mon client mode = crc
mon allow pool size one = true
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
run dir = {data}
admin socket = {data}/$name.asok
pid file =
log file =
log to stderr = true
err to stderr = true
mon cluster log file = {data}/cluster.log
debug osd = 0/0
debug mon = 0/0

[mon]
; One monitor has nobody to wait for; the default of 1 s is spent many times
; while pools are made.
paxos propose interval = 0.05
; Below this share of free disk, in percent, the monitor would end itself.
mon data avail crit = 1
mon data = {data}/mon

[osd]
osd data = {data}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
osd class load list = *
; The fast way out of an object daemon leaves its objects behind.
osd fast shutdown = false

[client]
rgw thread pool size = 64
rgw dynamic resharding = false
rgw data = {data}/gateway
"""


class S3(Component):
    name = "s3"
    programs = {"ceph-mon": "ceph-mon", "ceph-osd": "ceph-osd", "radosgw": "radosgw",
                "radosgw-admin": "radosgw", "ceph": "ceph-common"}
    ready_seconds = 60

    def __init__(self, instance):
        super().__init__(instance)
        self.mon = Process(instance.dir, "s3-mon")
        self.osd = Process(instance.dir, "s3-osd")
        self.conf = self.data / "ceph.conf"
        # There if the store was stopped in good order, with its address.
        self.saved = self.data / "saved"

    def prepare(self):
        if self.mon.pid() is None or self.osd.pid() is None:
            self.start_store()

    def start_store(self):
        """Starts monitor and object daemon, with what they had if that was
        saved."""
        for daemon in (self.osd, self.mon):
            daemon.kill()
        for name in ("s3-mon", *(f"s3-osd-{end}" for end in ("first", "last"))):
            self.require_port(self.instance.port(name))
        if self.saved.exists() and self.saved.read_text() == self.address:
            self.saved.unlink()
            self.start_mon()
            self.start_osd()
        else:
            if self.conf.exists():
                print("s3: the object daemon or the monitor ended without saving, or the port "
                      "is another: an empty store is made", file=sys.stderr, flush=True)
            self.make_store()

    def make_store(self):
        """Sets up an empty store."""
        for entry in self.data.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        fsid, osd_uuid = str(uuid.uuid4()), str(uuid.uuid4())
        mon_port = self.instance.port("s3-mon")
        self.conf.write_text(CONFIGURATION.format(
            fsid=fsid, data=self.data, mon_port=mon_port,
            osd_first=self.instance.port("s3-osd-first"),
            osd_last=self.instance.port("s3-osd-last")))
        run(["mkdir", self.data / "mon", self.data / "osd", self.data / "gateway"], "mkdir")
        self.ceph("monmaptool", "--create", "--clobber", "--addv", "a",
                  f"[v2:127.0.0.1:{mon_port}]", "--fsid", fsid, self.data / "monmap")
        self.ceph("ceph-mon", "--mkfs", "-i", "a", "--monmap", self.data / "monmap")
        self.start_mon()
        self.ceph("ceph", "osd", "new", osd_uuid)
        self.ceph("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_uuid)
        self.start_osd()

    def ceph(self, name, *arguments):
        return run([packages.program(name), "-c", self.conf, *arguments],
                   f"{name} {' '.join(map(str, arguments))}", seconds=60)

    def start_mon(self):
        self.mon.spawn([packages.program("ceph-mon"), "-c", self.conf, "-f", "-i", "a"])
        self.mon.wait_ready(self.probe_mon, self.ready_seconds)

    def start_osd(self):
        self.osd.spawn([packages.program("ceph-osd"), "-c", self.conf, "-f", "-i", "0"])
        self.osd.wait_ready(self.probe_osd, self.ready_seconds)

    def probe_mon(self):
        return None if (self.data / "mon.a.asok").exists() else "it has no admin socket yet"

    def probe_osd(self):
        try:
            state = json.loads(self.ceph("ceph", "--connect-timeout=10", "osd", "stat",
                                         "--format=json"))
        except Failed as e:
            return str(e)
        return None if state["num_up_osds"] == 1 else "the monitor does not call it up"

    def command(self):
        # Without tcp_nodelay each answer with a body waits 40 ms for an acknowledgement.
        return [packages.program("radosgw"), "-c", self.conf, "-f", "-n", "client.rgw.a",
                f"--rgw-frontends=beast endpoint=127.0.0.1:{self.port} tcp_nodelay=1"]

    def probe(self):
        """Whether the gateway answers and the store behind it, too."""
        for daemon in (self.mon, self.osd):
            if daemon.pid() is None:
                return f"{daemon.name} has ended"
        try:
            status, body = sigv4.request("GET", self.port, "/", KEY, SECRET)
        except (OSError, http.client.HTTPException) as e:
            return str(e)
        # Before the user is made, its key is refused: that is an answer, too.
        return None if status in (200, 403) else f"{status} {body}"

    def complete(self):
        if sigv4.request("GET", self.port, "/", KEY, SECRET)[0] == 403:
            self.ceph("radosgw-admin", "user", "create", "--uid=thalweg", "--display-name=thalweg",
                      f"--access-key={KEY}", f"--secret-key={SECRET}")
        status, body = sigv4.request("PUT", self.port, f"/{BUCKET}", KEY, SECRET)
        # 409: it is there, and ours.
        if status not in (200, 409):
            raise Failed(f"s3: cannot make the bucket {BUCKET}: {status} {body}")

    def start(self):
        if self.process.pid() is not None and None in (self.mon.pid(), self.osd.pid()):
            # A gateway does not outlive its store.
            self.process.kill()
        return super().start()

    def stop(self):
        gateway = self.process.stop(signal.SIGTERM, 30)
        whole = self.mon.pid() is not None and self.osd.pid() is not None
        if self.osd.stop(signal.SIGTERM, 30) and whole:
            self.saved.write_text(self.address)
        return self.mon.stop(signal.SIGTERM, 30) or gateway

    def purge(self):
        super().purge()
        for daemon in (self.mon, self.osd):
            daemon.log.unlink(missing_ok=True)

    def version(self):
        version = program_version("radosgw", before="ceph version ", after=" ")
        return None if version is None else f"radosgw {version}"

    def variables(self):
        return {"THALWEG_TEST_S3_ENDPOINT": f"http://127.0.0.1:{self.port}",
                "THALWEG_TEST_S3_BUCKET": BUCKET, "THALWEG_TEST_S3_KEY": KEY,
                "THALWEG_TEST_S3_SECRET": SECRET}
