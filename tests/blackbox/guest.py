#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest that trusts nobody.

usage: guest.py URI [--shadow FILE] [--connections N] [--rate N] [--mix all|write]
                    [--from B] [--to B] [--seconds S] [--report FILE] [--seed N]

Several processes, each with a connection of its own and one request in flight (so that it is no
danger to a server with nbdkit's abort bug), change their own parts of the disk: writes, zeroes and
trims of odd ranges, across block borders and up to the last byte, some with FUA, with flushes
between.  Every reply is looked at.  What was acknowledged is kept in the shadow file, which is as
large as the disk and equal to it at the start, and is read back now and then.

It goes on for S seconds, or until SIGTERM or SIGINT, or until a change is refused with EPERM: the
disk was handed over.  Any other error, or data that does not read back, ends it with exit status 1.
At the end the shadow holds exactly what this guest's disk must hold, here or at the destination.

FILE.begun is made when all processes are connected, FILE.live has the numbers so far (from byte
4096 on, SLOT bytes for each process).  The report is one JSON object: changes, reads, longest-gap
(seconds that one request took, at most), fenced, error.
"""
import argparse
import ctypes
import errno
import json
import mmap
import os
import random
import signal
import struct
import sys
import time

import nbd

SLOT = 64       # bytes of shared memory for each process: changes, reads, longest gap, fenced


class Wrong(Exception):
    pass


class Writer:
    """One of the processes."""

    def __init__(self, args, index, stop, slot):
        self.args, self.stop, self.slot = args, stop, slot
        self.rng = random.Random(args.seed * 1000 + index)
        self.changes = self.reads = 0
        self.longest = 0.0
        self.h = nbd.NBD()
        self.h.connect_uri(args.uri)
        size = self.h.get_size()
        first, end = args.first, min(size, args.end if args.end is not None else size)
        self.disk_size = size
        self.start = first + (end - first) * index // args.connections
        self.end = first + (end - first) * (index + 1) // args.connections
        self.shadow = None
        if args.shadow and size:
            with open(args.shadow, "r+b") as f:
                self.shadow = mmap.mmap(f.fileno(), size)

    def publish(self, fenced=False):
        struct.pack_into("=QQdQ", self.slot, 0, self.changes, self.reads, self.longest, fenced)

    def timed(self, call, *args):
        begin = time.monotonic()
        try:
            return call(*args)
        finally:
            self.longest = max(self.longest, time.monotonic() - begin)

    def range(self):
        """A range of ours: small and odd, at a block border, whole blocks, or the last bytes."""
        room = self.end - self.start
        kind = self.rng.randrange(6)
        length = self.rng.choice((1, 511, 512, 513, 4095, 4096, 4097, 8192, 65536))
        if kind == 0:
            length = self.rng.randrange(1, 20000)
        length = min(length, room)
        offset = self.start + self.rng.randrange(room - length + 1)
        if kind == 1:                       # across a border
            offset = (offset | 4095) + 1 - length // 2
        elif kind == 2:                     # our tail
            offset = self.end - length
        elif kind == 3:
            offset &= ~4095
        offset = max(self.start, min(offset, self.end - length))
        return offset, length

    def change(self):
        offset, length = self.range()
        kind = "write" if self.args.mix == "write" else \
            self.rng.choice(("write", "write", "write", "zero", "zero-hole", "trim", "flush"))
        fua = nbd.CMD_FLAG_FUA if self.rng.randrange(16) == 0 and self.h.can_fua() else 0
        if kind == "write":
            data = self.rng.randbytes(length)
            self.timed(self.h.pwrite, data, offset, fua)
        elif kind.startswith("zero"):
            data = bytes(length)
            self.timed(self.h.zero, length, offset,
                       fua | (0 if kind == "zero-hole" else nbd.CMD_FLAG_NO_HOLE))
        elif kind == "trim":
            if not self.h.can_trim():
                return
            self.timed(self.h.trim, length, offset, fua)
            # what a trimmed range reads as is the server's choice
            data = bytes(self.h.pread(length, offset))
        else:
            self.timed(self.h.flush)
            return
        self.changes += 1
        if self.shadow is not None:
            self.shadow[offset:offset + length] = data

    def check(self):
        offset, length = self.range()
        data = bytes(self.timed(self.h.pread, length, offset))
        self.reads += 1
        if self.shadow is not None and data != self.shadow[offset:offset + length]:
            raise Wrong("data at offset %d does not read back" % offset)

    def run(self):
        next_time = time.monotonic()
        end = next_time + self.args.seconds
        while not self.stop[0] and self.start < self.end and time.monotonic() < end:
            try:
                if self.rng.randrange(8) == 0:
                    self.check()
                else:
                    self.change()
            except nbd.Error as e:
                if e.errnum != errno.EPERM:
                    raise
                self.check()            # reads still pass
                self.publish(fenced=True)
                break
            self.publish()
            next_time = max(next_time + 1 / self.args.rate, time.monotonic() - 0.1)
            time.sleep(max(0, next_time - time.monotonic()))
        self.h.shutdown()


def child(args, index, stop, slot, complaint):
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)     # PR_SET_PDEATHSIG
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        writer = Writer(args, index, stop, slot)
        stop[1 + index] = 1
        writer.run()
    except (nbd.Error, Wrong) as e:
        text = ("connection %d: %s" % (index, e)).encode()[:1000]
        os.write(complaint, text + b"\n")
        os._exit(1)
    os._exit(0)


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("uri")
    p.add_argument("--shadow")
    p.add_argument("--connections", type=int, default=3)
    p.add_argument("--rate", type=float, default=200, help="requests a second of each connection")
    p.add_argument("--mix", choices=("all", "write"), default="all")
    p.add_argument("--from", dest="first", type=int, default=0)
    p.add_argument("--to", dest="end", type=int)
    p.add_argument("--seconds", type=float, default=60)
    p.add_argument("--report")
    p.add_argument("--seed", type=int, default=1)
    args = p.parse_args()

    size = 4096 + SLOT * args.connections
    if args.report:
        with open(args.report + ".live", "w+b") as f:
            f.truncate(size)
            shared = mmap.mmap(f.fileno(), size)
    else:
        shared = mmap.mmap(-1, size)
    slots = [memoryview(shared)[4096 + SLOT * i:4096 + SLOT * (i + 1)]
             for i in range(args.connections)]
    complaints, complain = os.pipe()

    def end(*_):
        shared[0] = 1
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    children = []
    for i in range(args.connections):
        pid = os.fork()
        if pid == 0:
            child(args, i, shared, slots[i], complain)
        children.append(pid)
    os.close(complain)
    if args.report:
        while sum(shared[1:1 + args.connections]) < args.connections and \
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.01)
        open(args.report + ".begun", "w").close()
    failed = False
    for pid in children:
        failed = os.waitpid(pid, 0)[1] != 0 or failed
        if failed:
            shared[0] = 1
    with os.fdopen(complaints) as f:
        error = f.read().strip() or ("a process died" if failed else None)
    counts = [struct.unpack_from("=QQdQ", s) for s in slots]
    report = {"changes": sum(c[0] for c in counts), "reads": sum(c[1] for c in counts),
              "longest-gap": round(max(c[2] for c in counts), 3),
              "fenced": all(c[3] for c in counts), "error": error}
    print(json.dumps(report))
    if args.report:
        with open(args.report, "w") as f:
            json.dump(report, f)
    sys.exit(1 if error else 0)


main()
