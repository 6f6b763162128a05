#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""An NBD server that goes wrong on demand.

It speaks the protocol by hand (fixed newstyle; EXPORT_NAME, INFO, GO, LIST, STRUCTURED_REPLY and
SET/LIST_META_CONTEXT with base:allocation), so that every fault is exact.  "ready" is
printed when it listens (with --refuse: is bound).

  fake-nbd-server.py --unix SOCKET [--size 64M | --file PATH] [faults]

Faults of the handshake, on the connections given by --connections (all, "1", "2-", "1-3"):
  --handshake refuse       bound, but not listening: connection refused
              hang         accepts and says nothing
              close        closes on accept
              bad-magic    says something that is not NBD
              hello-hang   says hello, then nothing
              hello-close  says hello, then closes
              hello-together  says hello to none of them (A-B) before all have come
              go-close     closes after the answer to GO: before the first request
              far          answers each option 50 ms late, and the first one's (A) GO only when all
                           (A-B) have asked for meta contexts (with --no-structured: 500 ms late);
                           refuses a GO that comes before

Faults of requests, --fault WHICH=ACTION, any number of them:
  WHICH is KIND:N, KIND:N-M, KIND:N- (the Nth request of that kind, counted from 1 over all
  connections), or KIND@OFFSET or KIND@FROM-TO (any request that touches these bytes).
  KIND is read, write, zero, trim, flush, status or any.
  ACTION is
    error:NAME      an error reply, and it is not done (EPERM EIO ENOMEM EINVAL ENOSPC EOVERFLOW
                    ENOTSUP ESHUTDOWN)
    close           closes the connection; not done
    close-mid       closes in the middle of the request's data, or of its reply
    close-after     does it, replies, closes
    hang            does it, never answers, nor anything that comes after on this connection
    hang-after      does it, replies, then nothing more on this connection
    hang-all        as hang, and for all connections, new ones too
    late:SECONDS    closes the connection at once, but does it SECONDS later
    delay:SECONDS   does it and replies SECONDS later; the requests after it wait
    no-reply        does it and never answers; goes on with the next ones
    wrong-cookie    does it, replies with another cookie

What is in volatile memory (--volatile): writes reach the disk when they are flushed, and are lost
when the server is killed or gets SIGUSR1. """

import argparse
import ctypes
import errno
import json
import os
import re
import signal
import socket
import struct
import sys
import threading
import time

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
REP_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_MAGIC = 0x67446698
STRUCTURED_MAGIC = 0x668E33EF

OPT_EXPORT_NAME, OPT_ABORT, OPT_LIST, OPT_INFO, OPT_GO = 1, 2, 3, 6, 7
OPT_STARTTLS = 5
OPT_STRUCTURED, OPT_LIST_META, OPT_SET_META = 8, 9, 10
REP_ACK, REP_SERVER, REP_INFO, REP_META = 1, 2, 3, 4
REP_ERR_UNSUP, REP_ERR_INVALID = 0x80000001, 0x80000003
INFO_EXPORT, INFO_BLOCK_SIZE = 0, 3

HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, SEND_TRIM, SEND_ZEROES, MULTI_CONN = \
    1, 2, 4, 8, 32, 64, 256

KINDS = {0: "read", 1: "write", 3: "flush", 4: "trim", 6: "zero", 7: "status"}
CMD_DISC = 2
FLAG_FUA = 1

NBD_ERRORS = {"EPERM": 1, "EIO": 5, "ENOMEM": 12, "EINVAL": 22, "ENOSPC": 28, "EOVERFLOW": 75,
              "ENOTSUP": 95, "ESHUTDOWN": 108}

FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Closed(Exception):
    """The connection is over, or shall be."""


class Hang(Exception):
    """Nothing more is said on this connection."""


def number(text):
    units = {"k": 10, "m": 20, "g": 30, "t": 40}
    if text[-1:].lower() in units:
        return int(text[:-1]) << units[text[-1].lower()]
    return int(text, 0)


def numbers(text):
    """"N", "N-M" or "N-" as a pair; the end is included, None for no end."""
    m = re.fullmatch(r"(\w+)(-(\w*))?", text)
    if not m:
        raise argparse.ArgumentTypeError("not a range: " + text)
    first = number(m[1])
    if m[2] is None:
        return first, first
    return first, number(m[3]) if m[3] else None


def within(value, pair):
    return pair[0] <= value and (pair[1] is None or value <= pair[1])


class Fault:
    def __init__(self, text):
        m = re.fullmatch(r"(any|%s)([:@])([^=]+)=([a-z-]+)(?::(.+))?" % "|".join(KINDS.values()),
                         text)
        actions = ("error close close-mid close-after hang hang-after hang-all late delay no-reply "
                   "wrong-cookie").split()
        if not m or m[4] not in actions:
            raise argparse.ArgumentTypeError("not a fault: " + text)
        self.kind, self.by_offset, self.range = m[1], m[2] == "@", numbers(m[3])
        self.action, self.argument = m[4], m[5]
        if self.action == "error":
            self.argument = NBD_ERRORS[self.argument]
        if self.action in ("late", "delay"):
            self.argument = float(self.argument)

    def meets(self, kind, nth, nth_any, offset, length):
        if self.kind not in ("any", kind):
            return False
        if self.by_offset:
            return offset + length > self.range[0] and \
                (self.range[1] is None or offset <= self.range[1])
        return within(nth_any if self.kind == "any" else nth, self.range)


class Disk:
    """The bytes: a file or a memfd; with volatile, in front of it what was not flushed."""

    def __init__(self, args):
        if args.file:
            self.fd = os.open(args.file, os.O_RDWR)
            self.size = os.fstat(self.fd).st_size if args.size is None else args.size
        else:
            self.size = 64 << 20 if args.size is None else args.size
            self.fd = os.memfd_create("disk")
            os.truncate(self.fd, self.size)
        self.volatile = args.volatile
        self.lock = threading.Lock()
        self.reset()

    def reset(self):
        """Lose what was not flushed."""
        self.pending = []
        if self.volatile:
            self.front = os.memfd_create("front")
            os.truncate(self.front, self.size)
            self.copy(self.fd, self.front, 0, self.size)
        else:
            self.front = self.fd

    @staticmethod
    def copy(src, dst, offset, length):
        end = offset + length
        while offset < end:
            data = os.pread(src, min(1 << 20, end - offset), offset)
            if not data:
                return
            os.pwrite(dst, data, offset)
            offset += len(data)

    def note(self, offset, length):
        if self.volatile:
            self.pending.append((offset, length))

    def read(self, offset, length):
        with self.lock:
            data = os.pread(self.front, length, offset)
        return data + bytes(length - len(data))

    def write(self, data, offset):
        with self.lock:
            view = memoryview(data)
            while view:
                n = os.pwrite(self.front, view, offset)
                self.note(offset, n)
                view, offset = view[n:], offset + n

    def zero(self, offset, length):
        with self.lock:
            self.note(offset, length)
            if libc.fallocate(self.front, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset,
                              length) == 0:
                return
            while length > 0:
                n = os.pwrite(self.front, bytes(min(length, 1 << 20)), offset)
                offset, length = offset + n, length - n

    def flush(self):
        with self.lock:
            for offset, length in self.pending:
                self.copy(self.front, self.fd, offset, length)
            self.pending = []

    def extents(self, offset, length):
        """Pairs of length and "is a hole", at most 64 of them."""
        end, out = offset + length, []
        with self.lock:
            while offset < end and len(out) < 64:
                try:
                    data = min(os.lseek(self.front, offset, os.SEEK_DATA), end)
                except OSError as e:
                    if e.errno != errno.ENXIO:
                        raise
                    data = end
                hole = data > offset
                to = data if hole else min(os.lseek(self.front, offset, os.SEEK_HOLE), end)
                out.append((to - offset, hole))
                offset = to
        return out


class Server:
    def __init__(self, args):
        self.args = args
        self.disk = Disk(args)
        self.lock = threading.Lock()
        self.counts = {}
        self.nr_connections = 0
        self.hang_all = False
        first, last = args.connections
        self.nr_together = last - first + 1 if last else 1
        self.together = threading.Barrier(self.nr_together)
        self.asked = threading.Semaphore(0)  # one for each question for meta contexts
        self.opened = False  # the first connection gets the answer to GO
        self.log_file = open(args.log, "a", buffering=1) if args.log else None

    def log(self, **what):
        if self.log_file:
            what["time"] = round(time.monotonic(), 6)
            with self.lock:
                self.log_file.write(json.dumps(what) + "\n")

    def count(self, kind):
        with self.lock:
            for k in (kind, "any"):
                self.counts[k] = self.counts.get(k, 0) + 1
            return self.counts[kind], self.counts["any"]

    def flags(self):
        a = self.args
        flags = HAS_FLAGS
        if a.read_only:
            flags |= READ_ONLY
        if not a.no_flush:
            flags |= SEND_FLUSH
        if not a.no_fua:
            flags |= SEND_FUA
        if not a.no_zero:
            flags |= SEND_ZEROES
        if not a.no_trim:
            flags |= SEND_TRIM
        if a.multi_conn:
            flags |= MULTI_CONN
        return flags

    def serve(self, listener):
        while True:
            sock, _ = listener.accept()
            self.nr_connections += 1
            if self.nr_connections == self.args.listens:
                listener.close()
            conn = Connection(self, sock, self.nr_connections)
            threading.Thread(target=conn.run, daemon=True).start()
            if listener.fileno() == -1:
                threading.Event().wait()


class Connection:
    def __init__(self, server, sock, nr):
        self.server, self.args, self.sock, self.nr = server, server.args, sock, nr
        self.structured = self.meta = False
        self.fault = None
        if self.args.handshake and within(nr, self.args.connections):
            self.fault = self.args.handshake

    # -- bytes

    def receive(self, length):
        buf = bytearray(length)
        view = memoryview(buf)
        while view:
            n = self.sock.recv_into(view)
            if n == 0:
                raise Closed()
            view = view[n:]
        return bytes(buf)

    def send(self, *parts):
        self.sock.sendall(b"".join(parts))

    def run(self):
        self.server.log(event="connect", connection=self.nr)
        try:
            if self.server.hang_all or self.fault == "hang":
                raise Hang()
            if self.fault != "close":
                self.handshake()
                while True:
                    self.request()
        except Hang:
            self.server.log(event="hang", connection=self.nr)
            threading.Event().wait()  # the client has to leave; the socket stays open
        except (Closed, OSError):
            pass
        self.server.log(event="close", connection=self.nr)
        try:
            # close() alone would wait for the other references of this socket.
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()

    # -- handshake

    def handshake(self):
        if self.fault == "bad-magic":
            self.send(b"220 mail.example.org ESMTP ready\r\n")
            raise Hang()
        if self.fault == "hello-together":
            self.server.together.wait()
        self.send(struct.pack(">QQH", NBDMAGIC, IHAVEOPT, 3))  # fixed newstyle, no zeroes
        if self.fault == "hello-hang":
            raise Hang()
        if self.fault == "hello-close":
            raise Closed()
        (client,) = struct.unpack(">I", self.receive(4))
        while True:
            magic, opt, length = struct.unpack(">QII", self.receive(16))
            if magic != IHAVEOPT or length > 65536:
                raise Closed()
            if self.option(opt, self.receive(length), bool(client & 2)):
                break
        if self.fault == "go-close":
            raise Closed()

    def reply(self, opt, kind, payload=b""):
        self.send(struct.pack(">QIII", REP_MAGIC, opt, kind, len(payload)), payload)

    def option(self, opt, data, no_zeroes):
        """True when the transmission begins."""
        size, flags = self.server.disk.size, self.server.flags()
        if self.args.later_size is not None and self.nr > 1:
            size = self.args.later_size
        if opt == OPT_EXPORT_NAME:
            self.send(struct.pack(">QH", size, flags), b"" if no_zeroes else bytes(124))
            return True
        if opt == OPT_ABORT:
            self.reply(opt, REP_ACK)
            raise Closed()
        if self.fault == "far":
            time.sleep(0.05)
            if not self.far(opt):
                self.reply(opt, REP_ERR_INVALID)
                return False
        if opt == OPT_LIST:
            self.reply(opt, REP_SERVER, struct.pack(">I", 0))
            self.reply(opt, REP_ACK)
        elif opt in (OPT_INFO, OPT_GO):
            self.reply(opt, REP_INFO, struct.pack(">HQH", INFO_EXPORT, size, flags))
            self.reply(opt, REP_INFO,
                       struct.pack(">HIII", INFO_BLOCK_SIZE, self.args.min_block,
                                   max(4096, self.args.min_block), self.args.max_block))
            self.reply(opt, REP_ACK)
            return opt == OPT_GO
        elif opt == OPT_STRUCTURED and not self.args.no_structured:
            self.structured = True
            self.reply(opt, REP_ACK)
        elif opt == OPT_STARTTLS and self.fault == "tls-hang":
            self.reply(opt, REP_ACK)
            raise Hang()
        elif opt in (OPT_SET_META, OPT_LIST_META) and self.structured:
            self.meta_context(opt, data)
        else:
            self.reply(opt, REP_ERR_UNSUP)
        return False

    def far(self, opt):
        """False: OPT comes too early."""
        first = self.nr == self.args.connections[0]
        if opt == OPT_SET_META:
            self.server.asked.release()
        if opt == OPT_GO and first:
            if self.args.no_structured:
                time.sleep(0.5)
            else:
                for _ in range(self.server.nr_together):
                    self.server.asked.acquire()
            self.server.opened = True
        return opt != OPT_GO or self.server.opened

    def meta_context(self, opt, data):
        (length,) = struct.unpack_from(">I", data)
        at = 4 + length
        (nr,) = struct.unpack_from(">I", data, at)
        at += 4
        names = []
        for _ in range(nr):
            (length,) = struct.unpack_from(">I", data, at)
            names.append(data[at + 4:at + 4 + length])
            at += 4 + length
        wanted = any(n in (b"base:", b"base:allocation") for n in names) or \
            (opt == OPT_LIST_META and not names)
        if wanted and not self.args.no_status:
            self.meta = self.meta or opt == OPT_SET_META
            self.reply(opt, REP_META, struct.pack(">I", 1) + b"base:allocation")
        self.reply(opt, REP_ACK)

    # -- requests

    def request(self):
        header = self.receive(28)
        magic, flags, cmd, cookie, offset, length = struct.unpack(">IHHQQI", header)
        if magic != REQUEST_MAGIC or cmd == CMD_DISC or cmd not in KINDS:
            raise Closed()
        kind = KINDS[cmd]
        nth, nth_any = self.server.count(kind)
        fault = next((f for f in self.args.fault
                      if f.meets(kind, nth, nth_any, offset, length)), None)
        action = fault.action if fault else None
        self.server.log(event="request", connection=self.nr, type=kind, nth=nth, offset=offset,
                        length=length, flags=flags, fault=action)
        if self.server.hang_all:
            raise Hang()
        if action == "close-mid" and cmd == 1:
            self.receive(length // 2)
            raise Closed()
        data = self.receive(length) if cmd == 1 else b""
        if action == "close":
            raise Closed()
        if action == "late":
            timer = threading.Timer(fault.argument, self.late, (cmd, data, offset, length, nth))
            timer.daemon = True
            timer.start()
            raise Closed()
        if action == "error":
            self.answer(cmd, cookie, offset, fault.argument, b"")
            return
        error, payload = self.perform(cmd, flags, data, offset, length)
        if action == "delay" or self.args.delay:
            time.sleep(fault.argument if action == "delay" else self.args.delay)
        if action == "hang-all":
            self.server.hang_all = True
        if action in ("hang", "hang-all") or self.server.hang_all:
            raise Hang()
        if action == "no-reply":
            return
        if action == "wrong-cookie":
            cookie ^= 0x5555
        if action == "close-mid":
            self.sock.sendall(struct.pack(">I", STRUCTURED_MAGIC if self.structured
                                          else SIMPLE_MAGIC) + b"\0\0")
            raise Closed()
        self.answer(cmd, cookie, offset, error, payload)
        if action == "hang-after":
            raise Hang()
        if action == "close-after":
            raise Closed()

    def late(self, cmd, data, offset, length, nth):
        self.perform(cmd, 0, data, offset, length)
        self.server.log(event="applied-late", type=KINDS[cmd], nth=nth, offset=offset,
                        length=length)

    def perform(self, cmd, flags, data, offset, length):
        """The error, and the reply's payload."""
        disk = self.server.disk
        if cmd != 3 and (offset > disk.size or length > disk.size - offset):
            return NBD_ERRORS["ENOSPC" if cmd in (1, 6) else "EINVAL"], b""
        if (offset | length) % self.args.min_block or \
                (cmd in (0, 1) and length > self.args.max_block):
            return NBD_ERRORS["EINVAL"], b""
        if cmd in (1, 4, 6) and self.args.read_only:
            return NBD_ERRORS["EPERM"], b""
        payload = b""
        if cmd == 0:
            payload = disk.read(offset, length)
        elif cmd == 1:
            disk.write(data, offset)
        elif cmd == 3:
            if self.args.no_flush:
                return NBD_ERRORS["EINVAL"], b""
            disk.flush()
        elif cmd == 6:
            disk.zero(offset, length)
        elif cmd == 7:
            if not self.meta:
                return NBD_ERRORS["EINVAL"], b""
            hole = 1 if self.args.holes_are_not_zero else 3
            payload = struct.pack(">I", 1) + b"".join(
                struct.pack(">II", n, hole if is_hole else 0)
                for n, is_hole in disk.extents(offset, length))
        if flags & FLAG_FUA:
            disk.flush()
        return 0, payload

    def answer(self, cmd, cookie, offset, error, payload):
        if not self.structured or cmd not in (0, 7):
            self.send(struct.pack(">IIQ", SIMPLE_MAGIC, error, cookie), payload)
            return
        if error:
            kind, body = 32769, struct.pack(">IH", error, 0)
        elif cmd == 0:
            kind, body = 1, struct.pack(">Q", offset) + payload
        else:
            kind, body = 5, payload
        self.send(struct.pack(">IHHQI", STRUCTURED_MAGIC, 1, kind, cookie, len(body)), body)


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    where = p.add_mutually_exclusive_group(required=True)
    where.add_argument("--unix", metavar="SOCKET")
    where.add_argument("--activated", action="store_true",
                       help="the listening socket is descriptor 3 (systemd's socket activation)")
    where.add_argument("--port", type=int, help="on 127.0.0.1; 0: any, printed after \"ready\"")
    p.add_argument("--size", type=number, help="bytes (k, M, G, T); default: the file's, or 64M")
    p.add_argument("--later-size", type=number,
                   help="the size that connections after the first see")
    p.add_argument("--file", help="the disk's contents are there; default: in memory, all zero")
    p.add_argument("--read-only", action="store_true")
    p.add_argument("--no-flush", action="store_true")
    p.add_argument("--no-fua", action="store_true")
    p.add_argument("--no-zero", action="store_true")
    p.add_argument("--no-trim", action="store_true")
    p.add_argument("--no-structured", action="store_true")
    p.add_argument("--no-status", action="store_true", help="no base:allocation")
    p.add_argument("--holes-are-not-zero", action="store_true", help="status says HOLE, never ZERO")
    p.add_argument("--multi-conn", action="store_true")
    p.add_argument("--min-block", type=number, default=1)
    p.add_argument("--max-block", type=number, default=32 << 20)
    p.add_argument("--volatile", action="store_true", help="unflushed writes die with the server")
    p.add_argument("--delay", type=float, default=0, metavar="SECONDS", help="every reply is late")
    p.add_argument("--handshake", choices="refuse hang close bad-magic hello-hang hello-close "
                                          "hello-together go-close far tls-hang".split())
    p.add_argument("--connections", type=numbers, default=(1, None),
                   help="the connections that --handshake is for")
    p.add_argument("--listens", type=int, metavar="N",
                   help="after N connections others are refused")
    p.add_argument("--fault", type=Fault, action="append", default=[], metavar="WHICH=ACTION")
    p.add_argument("--log", metavar="FILE", help="one JSON object for every request and event")
    p.add_argument("--pidfile", metavar="FILE")
    args = p.parse_args()

    server = Server(args)
    if args.activated:
        libc.prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG: end with the client
        listener = socket.socket(fileno=3)
    elif args.unix:
        listener = socket.socket(socket.AF_UNIX)
        if os.path.exists(args.unix):
            os.unlink(args.unix)
        listener.bind(args.unix)
    else:
        listener = socket.socket(socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", args.port))
    if args.handshake != "refuse" and not args.activated:
        listener.listen(16)
    signal.signal(signal.SIGUSR1, lambda *_: server.disk.reset())
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if args.pidfile:
        with open(args.pidfile, "w") as f:
            f.write("%d\n" % os.getpid())
    if not args.activated:
        print("ready" if args.unix else "ready %d" % listener.getsockname()[1], flush=True)
    try:
        if args.handshake == "refuse":
            signal.pause()
        server.serve(listener)
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
