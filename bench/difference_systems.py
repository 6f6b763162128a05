# SPDX-License-Identifier: LGPL-2.1-or-later
"""The contestants of bench/run difference.  Each makes the destination new, copies once, and is
measured, or its bytes are counted by a relay."""

import contextlib
import os
import re
import socket
import subprocess
import threading
import time

import common
from common import Run, process_cpu, uri

setup = None


def set_up(given):
    global setup
    setup = given
    for variable, name in (("RECEIVE", "mirror-receive"), ("DIGEST", "digest")):
        os.environ[f"NBDMIRROR_{variable}_FILTER"] = os.path.join(
            setup.builddir, f"nbd-plugin/.libs/nbdkit-{name}-filter.so")


def keep_digests(_, disks):
    """What was changed just now is not kept."""
    time.sleep(2.1)
    for path in (disks.base, disks.there):
        common.call(setup.nbdmirror, "digest", path)


# ---- counting ------------------------------------------------------------------------------

class Relay:
    """Passes connections on between two unix sockets, and counts the bytes each way."""

    def __init__(self, to):
        self.to, self.path = to, to + ".relay"
        self.sent = self.got = 0
        self.lock = threading.Lock()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(64)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client = self.listener.accept()[0]
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.to)
            for a, b, sent in ((client, server, True), (server, client, False)):
                threading.Thread(target=self.pass_on, args=(a, b, sent), daemon=True).start()

    def pass_on(self, a, b, sent):
        buffer = memoryview(bytearray(1 << 20))
        with contextlib.suppress(OSError):
            while n := a.recv_into(buffer):
                b.sendall(buffer[:n])
                with self.lock:
                    self.sent += n if sent else 0
                    self.got += 0 if sent else n
        with contextlib.suppress(OSError):
            b.shutdown(socket.SHUT_WR)

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        os.unlink(self.path)


def tree(pid):
    """A process and all that it has started."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as f:
                for child in f.read().split():
                    found += tree(int(child))
    return found


def tree_cpu(pid):
    seconds = 0
    for p in tree(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            seconds += process_cpu(p)
    return seconds


# ---- servers ---------------------------------------------------------------------------------

@contextlib.contextmanager
def receive(disk, *options):
    """`nbdmirror receive`: (socket, pid)."""
    sock = os.path.join(setup.tmp, "receive.sock")
    with open(os.path.join(setup.tmp, "receive.log"), "w") as log:
        process = subprocess.Popen([setup.nbdmirror, "receive", disk, "--socket", sock, "--keep",
                                    "--overcommit",  # the disks are sparse
                                    *options],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
    try:
        if not process.stdout.readline():
            with open(log.name) as f:
                raise RuntimeError("nbdmirror receive: " + f.read())
        yield sock, process.pid
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


class System:
    """One way to copy.  destination() is a context with the socket and the process there, and
    command(SOCKET) what copies."""

    needs = ()

    def __init__(self, disks):
        self.disks = disks
        self.source_pid = None

    @staticmethod
    def applies(_different):
        return True

    @contextlib.contextmanager
    def source(self):
        yield

    def clean_up(self):
        """So that the next one finds the base only."""

    def measure(self):
        with self.source(), self.destination() as (sock, pid):
            here = tree_cpu(self.source_pid) if self.source_pid else 0
            there = tree_cpu(pid) if pid else 0
            run = Run(self.command(sock), 3600)
            result = {"seconds": run.seconds, "here": run.cpu, "there": 0.0}
            if self.source_pid:
                result["here"] += tree_cpu(self.source_pid) - here
            if pid:
                result["there"] = tree_cpu(pid) - there
        self.clean_up()
        return result

    def count(self):
        with self.source(), self.destination() as (sock, _):
            relay = Relay(sock)
            Run(self.command(relay.path), 3600)
            relay.close()
        self.prove()
        self.clean_up()
        return relay.sent, relay.got

    def prove(self):
        pass


class Overlay(System):
    """To an overlay on the destination's copy of the base."""

    @contextlib.contextmanager
    def destination(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.disks.overlay)
        with receive(self.disks.overlay, "--format", "qcow2", "--size", str(self.disks.size),
                     "--backing", self.disks.there, "--backing-format", "raw") as server:
            yield server

    def prove(self):
        common.call("qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", self.disks.source,
                    self.disks.overlay)


class Raw(System):
    """To a raw disk."""

    def prove(self):
        common.call("qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", self.disks.source,
                    self.disks.dest)

    def clean_up(self):
        self.disks.restore(self.disks.dest)


def mirror(sock):
    return f"nbd+unix:///mirror?socket={sock}"


class Top(Overlay):
    @contextlib.contextmanager
    def source(self):
        sock = os.path.join(setup.tmp, "layers.sock")
        with common.Server(setup, ["qemu-nbd", "--allocation-depth", "--read-only", "--persistent",
                                   "--shared=0", "-f", "qcow2", "-k", sock, self.disks.layer],
                           sock) as server:
            self.source_pid, self.source_uri = server.pid, server.uri
            yield

    def command(self, sock):
        return [setup.nbdmirror, "copy", self.source_uri, mirror(sock), "--sync", "top",
                "--trust-base"]


class Base(Overlay):
    def command(self, sock):
        return [setup.nbdmirror, "copy", self.disks.source, mirror(sock), "--sync", "base",
                "--base", self.disks.base]


class Compare(Raw):
    @contextlib.contextmanager
    def destination(self):
        with receive(self.disks.dest, "--resume") as server:
            yield server

    def command(self, sock):
        return [setup.nbdmirror, "copy", self.disks.source, mirror(sock), "--sync", "compare"]


class Nbdcopy(Raw):
    needs = ("nbdcopy",)

    @contextlib.contextmanager
    def destination(self):
        with common.nbdkit(setup, "plain", "file", self.disks.dest) as server:
            yield server.sock, server.pid

    def command(self, sock):
        return ["nbdcopy", "--flush", self.disks.source, uri(sock)]


class Local(System):
    """Without a line."""

    @contextlib.contextmanager
    def destination(self):
        yield None, None

    def count(self):
        with self.destination():
            Run(self.command(None), 3600)
        self.prove()
        self.clean_up()
        return None, None


class Convert(Local):
    @contextlib.contextmanager
    def destination(self):
        self.disks.new_overlay(self.disks.overlay, self.disks.there)
        yield None, None

    def command(self, _):
        return ["qemu-img", "convert", "-n", "-f", "qcow2", "-O", "qcow2", "-B", self.disks.there,
                "-F", "raw", self.disks.layer, self.disks.overlay]

    prove = Overlay.prove


class CompareImages(Local):
    @staticmethod
    def applies(different):
        return different == 0

    def command(self, _):
        return ["qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", self.disks.source,
                self.disks.dest]


class Rsync(Raw):
    """The remote shell is a script of ours, which notes the processor time behind it."""

    needs = ("rsync",)

    @contextlib.contextmanager
    def destination(self):
        self.times = os.path.join(setup.tmp, "rsync.times")
        shell = os.path.join(setup.tmp, "rsh")
        with open(shell, "w") as f:
            f.write(f'#!/bin/sh\nshift\n"$@"\nstatus=$?\ntimes >{self.times}\nexit $status\n')
        os.chmod(shell, 0o755)
        yield None, None

    def command(self, _):
        shell = os.path.join(setup.tmp, "rsh")
        return ["rsync", "--inplace", "--no-whole-file", "--ignore-times", "--stats", "--fsync",
                "-e", shell, self.disks.source, "there:" + self.disks.dest]

    def measure(self):
        result = super().measure()
        with open(self.times) as f:  # the second line: of the shell's children
            minutes = re.findall(r"(\d+)m([\d.]+)s", f.read().splitlines()[1])
        result["there"] = sum(60 * int(m) + float(s) for m, s in minutes)
        result["here"] -= result["there"]
        return result

    def count(self):
        with self.destination():
            told = Run(self.command(None), 3600).output
        self.prove()
        self.clean_up()
        return tuple(int(re.search(rf"Total bytes {way}: ([\d,.]+)", told)[1].replace(",", ""))
                     for way in ("sent", "received"))


SYSTEMS = {"top": Top, "base": Base, "compare": Compare, "nbdcopy": Nbdcopy, "convert -B": Convert,
           "compare-img": CompareImages, "rsync": Rsync}
