# SPDX-License-Identifier: LGPL-2.1-or-later
"""The contestants of `bench/run load`: each serves a disk to the guest over NBD, mirrors it to an
NBD server, and hands over.  All offer the same:

  uri               where the guest connects
  qmp               its control connection; BLOCK_JOB_READY comes there
  begin (dest, cap) start mirroring; cap in bytes a second, 0 for none
  left ()           bytes left to copy, or None
  cpu ()            processor time so far, in seconds: serving the guest, and mirroring
  hand_over (done)  what the pause was: a dict, see below; calls DONE once, after the first one
  close ()

hand_over returns {"step-ms": from asking
                   for it until it is done; "pauses-ms": how long guest writes were
held, each time, as the system itself tells; "spans": the stretches of time in which to look for the
longest gap in the guest's completions; "committed-at": when the guest was cut off from this disk;
"refused": why a hand-over did not come about; "told": more figures}. """

import fcntl
import json
import mmap
import os
import struct
import subprocess
import time

import common
import qmp

PAUSE_OF_READY = 0.3   # between two hand-overs that are taken back
F_ADD_SEALS, SEAL_SHRINK, SEAL_GROW = 1033, 2, 4
ABORT = 2
MAX_DOWNTIME_MS = 300  # nbdmirror's default


class Ended(Exception):
    """The mirroring ended before it was ready, for the reason given."""


def word():
    """A decision word, undecided: its descriptor and a view of it (see nbdmirror-control(7))."""
    fd = os.memfd_create("word", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 4096)
    fcntl.fcntl(fd, F_ADD_SEALS, SEAL_SHRINK | SEAL_GROW)
    return fd, mmap.mmap(fd, 4096)


class Nbdmirror:
    """`nbdmirror serve` and `nbdmirror mirror`.

    The pause is measured several times: HOLDS hand-overs that are prepared to the end (everything
    copied, flushed, fence record drafted) and then not committed but released; and a last one that
    is committed and at once rolled back, so that the guest goes on and its log shows the whole
    pause."""

    def __init__(self, setup, policy, source, holds):
        self.setup, self.policy, self.holds = setup, policy, holds
        self.server = common.serve(setup, "source", source)
        self.worker = None
        self.uri = self.server.uri
        self.qmp = qmp.QMP(self.server.control)

    def begin(self, dest, cap):
        argv = [self.setup.nbdmirror, "mirror", self.server.control, dest.uri, "--policy",
                self.policy]
        if cap:
            argv += ["--bandwidth", str(cap)]
        self.log = os.path.join(self.setup.tmp, "worker.log")
        with open(self.log, "w") as out:
            self.worker = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def left(self):
        if self.worker.poll() is not None:
            with open(self.log) as f:
                raise Ended(f"nbdmirror mirror ended with {self.worker.returncode}: {f.read()}")
        status = self.qmp.command("query-mirror")
        if status["dirty-bytes"] is None:
            return None
        return status["dirty-bytes"] + status["claimed-bytes"]

    def cpu(self):
        return self.server.cpu(), common.process_cpu(self.worker.pid)

    def wait_ready(self, timeout):
        end = time.monotonic() + timeout
        while self.qmp.command("query-mirror")["state"] != "ready":
            if time.monotonic() > end:
                raise qmp.QMPError("the job is not ready any more")
            time.sleep(0.02)

    def gate_times(self, after):
        """When the gate was held, and when it was AFTER ("open" stands for all its modes but
        fenced)."""
        held = None
        while True:
            e = self.qmp.event(["MIRROR_GATE"], 10)
            if e is None:
                raise qmp.QMPError(f"the gate was not {after}")
            gate = e["data"]["gate"]
            if gate == "held":
                held = qmp.seconds(e)
            elif held is not None and (gate == "fenced") == (after == "fenced"):
                return held, qmp.seconds(e)

    def rehearse(self):
        """One hand-over that is released instead of committed: when the gate was held, when all was
        prepared, and when the gate was open again."""
        fd, view = word()
        try:
            self.qmp.events.clear()
            self.qmp.command("mirror-prepare",
                             {"id": "mirror", "lease-ms": 2 * MAX_DOWNTIME_MS, "waiters": "keep",
                              "rollback-token": "rehearsal"}, fd=fd)
            prepared = time.time()
            struct.pack_into("=I", view, 0, ABORT)
            self.qmp.command("mirror-release", {"id": "mirror"})
        finally:
            view.close()
            os.close(fd)
        held, opened = self.gate_times("open")
        return held, prepared, opened

    def hand_over(self, done):
        result = {"pauses-ms": [], "spans": [], "refused": []}
        for _ in range(self.holds):
            try:
                self.wait_ready(5)
                held, prepared, opened = self.rehearse()
            except qmp.QMPError as e:
                result["refused"].append(str(e))
                time.sleep(PAUSE_OF_READY)
                continue
            if not result["spans"]:
                done()
            result["pauses-ms"].append(1000 * (prepared - held))
            result["spans"].append([held, opened])
            time.sleep(PAUSE_OF_READY)
        first = not result["spans"]
        self.commit(result)
        if first:
            done()
        return result

    def commit(self, result):
        self.qmp.events.clear()
        start = time.time()
        for _ in range(5):
            p = subprocess.run([self.setup.nbdmirror, "complete", "--json", "--waiters", "keep",
                                self.server.control], stdin=subprocess.DEVNULL, capture_output=True,
                               text=True)
            if p.returncode == 0:
                break
            result["refused"].append(p.stderr.strip())
            time.sleep(PAUSE_OF_READY)
        else:
            return
        done = time.time()
        told = json.loads(p.stdout)
        self.qmp.command("mirror-rollback", {"rollback-token": told["rollback-token"],
                                             "destination-stopped": True})
        result["committed-at"] = self.gate_times("fenced")[1]
        result["pauses-ms"].append(told["disks"][0]["downtime-ms"])
        result["committed-ms"] = told["disks"][0]["downtime-ms"]
        result["step-ms"] = 1000 * (done - start)

    def told(self):
        """What the filter and the worker say of themselves; kept in the results."""
        status = self.qmp.command("query-mirror")
        names = ("sent-bytes", "passes", "gate", "state", "reason", "delayed-writes",
                 "missed-writes",
                 "longest-write-delay-ms", "max-write-delay-ms", "expected-downtime-ms")
        return {name: status[name] for name in names if name in status}

    def close(self):
        self.qmp.close()
        if self.worker and self.worker.poll() is None:
            self.worker.terminate()
            try:
                self.worker.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.worker.kill()
                self.worker.wait()
        self.server.stop()


class Qemu:
    """qemu-storage-daemon: an NBD export of a raw file, and blockdev-mirror to the NBD server.
    Handing over is block-job-complete: the export is switched to the destination, where the guest
    goes on."""

    def __init__(self, setup, copy_mode, source):
        self.copy_mode = copy_mode
        sock, monitor = (os.path.join(setup.tmp, name) for name in ("qemu.sock", "qemu.qmp"))
        argv = ["qemu-storage-daemon",
                "--blockdev", f"driver=file,node-name=file,filename={source},cache.direct=off",
                "--blockdev", "driver=raw,node-name=disk,file=file",
                "--nbd-server", f"addr.type=unix,addr.path={sock}",
                "--export", "type=nbd,id=export,node-name=disk,name=disk,writable=on",
                "--chardev", f"socket,id=monitor,path={monitor},server=on,wait=off",
                "--monitor", "chardev=monitor"]
        self.server = common.Server(setup, argv, sock)
        self.monitor = monitor
        self.uri = f"nbd+unix:///disk?socket={sock}"
        end = time.monotonic() + 10
        while not common.listening(monitor) and time.monotonic() < end:
            time.sleep(0.01)
        self.qmp = qmp.QMP(monitor)

    def begin(self, dest, cap):
        self.qmp.command("blockdev-add", {"driver": "nbd", "node-name": "dest",
                                          "server": {"type": "unix", "path": dest.sock}})
        arguments = {"job-id": "job", "device": "disk", "target": "dest", "sync": "full",
                     "copy-mode": self.copy_mode}
        if cap:
            arguments["speed"] = cap
        self.qmp.command("blockdev-mirror", arguments)

    def left(self):
        for job in self.qmp.command("query-block-jobs"):
            return job["len"] - job["offset"]
        raise Ended("the job has ended")

    def cpu(self):
        return self.server.cpu(), 0.0  # one process does both

    def hand_over(self, done):
        result = {"pauses-ms": [], "spans": [], "refused": []}
        self.qmp.events.clear()
        start = time.time()
        self.qmp.command("block-job-complete", {"device": "job"})
        e = self.qmp.event(["BLOCK_JOB_COMPLETED"], 30)
        done()
        if e is None:
            result["refused"].append("not completed within 30 s")
            return result
        if "error" in e["data"]:
            result["refused"].append(e["data"]["error"])
        result["step-ms"] = 1000 * (qmp.seconds(e) - start)
        result["spans"].append([start, time.time()])
        return result

    def told(self):
        return {}

    def close(self):
        self.qmp.close()
        self.server.stop()
        if os.path.exists(self.monitor):
            os.unlink(self.monitor)


SYSTEMS = ("none", "sync", "throttle", "qemu-background", "qemu-write-blocking")


def title(system):
    return system if system.startswith("qemu") else "nbdmirror " + system


def start(setup, system, source, holds):
    if system.startswith("qemu-"):
        return Qemu(setup, system.partition("-")[2], source)
    return Nbdmirror(setup, system, source, holds)


def check_qemu():
    common.need("qemu-storage-daemon")


