# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the tests of the filter's side of the protocol share: a client of the control socket, a
reader of the shared region, the decision word, and an nbdkit with the filter.  Standard library and
nbd only. """
import contextlib
import ctypes
import json
import mmap
import os
import platform
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

import nbd

ARRAYS = ("dirty", "claimed-a", "claimed-b", "quarantine")
BLOCK = 4096


class Refused(Exception):
    """The filter answered with an error."""

    def __init__(self, error):
        super().__init__("%s: %s" % (error["class"], error["desc"]))
        self.class_ = error["class"]
        self.desc = error["desc"]


class Client:
    """A control connection.  start() sends, finish() waits for that answer, call() does both;
    events and a descriptor that came along are kept."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(path)
        self.data = b""
        self.fds = []
        self.events = []
        self.answers = {}
        self.last_id = 0
        assert "QMP" in self._next(10)
        self.call("qmp_capabilities")

    def _next(self, timeout):
        """The next message, or None when none came in time."""
        end = time.monotonic() + timeout
        while b"\n" not in self.data:
            left = end - time.monotonic()
            if not select.select([self.sock], [], [], max(0, left))[0]:
                return None
            try:
                more, fds, _, _ = socket.recv_fds(self.sock, 65536, 4)
            except ConnectionResetError:
                raise EOFError("the filter closed the connection") from None
            if not more:
                raise EOFError("the filter closed the connection")
            self.data += more
            self.fds += fds
        line, self.data = self.data.split(b"\n", 1)
        return json.loads(line)

    def start(self, name, /, fd=None, **args):
        self.last_id += 1
        line = json.dumps({"execute": name, "id": self.last_id,
                           "arguments": {k.replace("_", "-"): v for k, v in args.items()}})
        line = line.encode() + b"\n"
        if fd is None:
            self.sock.sendall(line)
        else:
            socket.send_fds(self.sock, [line], [fd])
        return self.last_id

    def _take(self, timeout):
        message = self._next(timeout)
        if message is None:
            return False
        if "event" in message:
            self.events.append(message)
        else:
            self.answers[message.get("id")] = message
        return True

    def finish(self, id_, timeout=10):
        end = time.monotonic() + timeout
        while id_ not in self.answers:
            if not self._take(max(0, end - time.monotonic())) and time.monotonic() >= end:
                raise TimeoutError("no answer within %s s" % timeout)
        message = self.answers.pop(id_)
        if "error" in message:
            raise Refused(message["error"])
        return message["return"]

    def answered(self, id_):
        while self._take(0):
            pass
        return id_ in self.answers

    def call(self, name, /, fd=None, timeout=10, **args):
        return self.finish(self.start(name, fd, **args), timeout)

    def event(self, name, timeout=20, **wanted):
        """Wait for an event; those before it are dropped."""
        end = time.monotonic() + timeout
        while True:
            while self.events:
                e = self.events.pop(0)
                if e["event"] == name and all(e["data"].get(k) == v for k, v in wanted.items()):
                    return e["data"]
            if not self._take(max(0, end - time.monotonic())) and time.monotonic() >= end:
                raise TimeoutError("no event %s %s within %s s" % (name, wanted, timeout))

    def closed(self, timeout=20):
        """Wait until the filter closes the connection."""
        end = time.monotonic() + timeout
        try:
            while time.monotonic() < end:
                self._take(0.05)
        except EOFError:
            return True
        return False

    def status(self):
        return self.call("query-mirror")

    def close(self):
        self.sock.close()
        for fd in self.fds:
            os.close(fd)


class Region:
    """The shared region as it stands in the memfd (dirty-bitmap/region.h)."""

    CONSTANT = "=8sIIQQQQ5Q5QQQ16s"

    def __init__(self, fd):
        self.map = mmap.mmap(fd, os.fstat(fd).st_size)
        os.close(fd)
        head = struct.unpack_from(self.CONSTANT, self.map)
        assert head[0] == b"NBDMIRR\0" and head[1] == 4, head[:2]
        _, _, _, self.region_size, self.disk_size, self.block_size, self.nr_blocks = head[:7]
        self.array_offset = head[7:12]
        self.summary_offset = head[12:17]
        # The counters stand on the next cache line after the constant part; see struct
        # region_header.
        size = struct.calcsize(self.CONSTANT)
        self.count_at = (size + 63) // 64 * 64
        self.words = (self.nr_blocks + 63) // 64
        self.urgent_at = head[17]

    def blocks(self, array):
        """The set of blocks whose bit is set."""
        offset = self.array_offset[ARRAYS.index(array)]
        words = struct.unpack_from("=%dQ" % self.words, self.map, offset)
        return {64 * i + bit for i, word in enumerate(words) if word
                for bit in range(64) if word >> bit & 1}

    def counter(self, array):
        return struct.unpack_from("=q", self.map, self.count_at + 8 * ARRAYS.index(array))[0]

    def assign(self, array, blocks):
        """Set exactly these blocks, with summary and counter.  For a quiet region only."""
        a = ARRAYS.index(array)
        bits = sum(1 << b for b in blocks)
        words = bits.to_bytes(8 * self.words, "little")
        self.map[self.array_offset[a]:self.array_offset[a] + len(words)] = words
        summary = 0
        for w in range(self.words):
            if words[8 * w:8 * w + 8] != bytes(8):
                summary |= 1 << w
        length = (self.words + 63) // 64 * 8
        self.map[self.summary_offset[a]:self.summary_offset[a] + length] = \
            summary.to_bytes(length, "little")
        struct.pack_into("=q", self.map, self.count_at + 8 * a, len(blocks))

    def clear_half(self, array):
        """A clear that is never ended: the summary is empty, and that is not looked at again."""
        a = ARRAYS.index(array)
        begun = self.count_at + 192 + 8 * a
        struct.pack_into("=Q", self.map, begun, struct.unpack_from("=Q", self.map, begun)[0] + 1)
        struct.pack_into("=Q", self.map, self.summary_offset[a], 0)

    def clean(self):
        for a in ARRAYS:
            self.assign(a, ())

    # The synchronous gate (dirty-bitmap/urgent.h).  Python has no compare-and-swap: a request that
    # the filter gives up in the very moment it is answered leaves a slot in use.

    GATE_WORDS = {"sync-epoch": 328, "progress": 512, "synced-epoch": 520}     # behind count_at
    FREE, POSTED, DONE, LATE = 0, 2, 4, 5

    def gate(self, name):
        return struct.unpack_from("=Q", self.map, self.count_at + self.GATE_WORDS[name])[0]

    def set_gate(self, name, value):
        struct.pack_into("=Q", self.map, self.count_at + self.GATE_WORDS[name], value)

    def move(self):
        """Something was acknowledged by the destination."""
        self.set_gate("progress", self.gate("progress") + 1)

    def catch_up(self):
        self.set_gate("synced-epoch", self.gate("sync-epoch"))

    def urgent(self):
        """What waits for an answer: {slot: (kind, first block, blocks)}; kind 1 write, 2 flush."""
        view = memoryview(self.map)
        states = view[self.urgent_at:self.urgent_at + 1024 * 64].cast("I")[::16].tolist()
        return {i: struct.unpack_from("=IQQ", self.map, self.urgent_at + 64 * i + 4)
                for i, state in enumerate(states) if state == self.POSTED}

    def answer(self, slot, ok=True):
        at = self.urgent_at + 64 * slot
        struct.pack_into("=I", self.map, at, self.DONE if ok else self.LATE)
        number = {"x86_64": 202, "aarch64": 98}.get(platform.machine())
        if number is not None:          # else the filter looks by itself soon
            word = ctypes.c_uint32.from_buffer(self.map, at)
            ctypes.CDLL(None).syscall(ctypes.c_long(number), ctypes.byref(word), 1, 1 << 30, None,
                                      None, 0)

    def serve(self, seconds, until=lambda: False):
        """Answer everything for a while; returns what was asked for."""
        seen = []
        end = time.monotonic() + seconds
        while time.monotonic() < end and not until():
            for slot, request in self.urgent().items():
                seen.append(request)
                self.move()
                self.answer(slot)
            time.sleep(0.001)
        return seen


class Word:
    """A decision word."""

    def __init__(self):
        self.fd = os.memfd_create("word", os.MFD_CLOEXEC | 2)
        os.ftruncate(self.fd, 4096)
        import fcntl
        fcntl.fcntl(self.fd, 1033, 2 | 4)       # F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW
        self.map = mmap.mmap(self.fd, 4096)

    def get(self):
        return struct.unpack_from("=I", self.map)[0]

    def set(self, value):
        """The coordinator's compare-and-swap; here nobody races."""
        if self.get() == 0:
            struct.pack_into("=I", self.map, 0, value)
        return self.get()


def filter_path():
    path = os.environ.get("NBDMIRROR_FILTER")
    if path is None:
        path = os.path.join(os.environ.get("builddir", "."),
                            "nbd-plugin/.libs/nbdkit-mirror-filter.so")
    return os.path.abspath(path)


def server_environment():
    """A sanitized filter needs its runtime loaded first."""
    env = dict(os.environ)
    sanitizers = os.environ.get("SANITIZERS")
    if sanitizers is None:
        try:
            makefile = open(os.path.join(os.environ.get("builddir", "."), "Makefile")).read()
            sanitizers = re.search(r"^SANITIZERS *= *(.*)$", makefile, re.M).group(1)
        except (OSError, AttributeError):
            sanitizers = "no"
    runtime = "libasan.so" if "address" in sanitizers else \
        "libtsan.so" if "thread" in sanitizers else None
    if runtime is not None:
        env["LD_PRELOAD"] = subprocess.run(["gcc", "-print-file-name=" + runtime], check=True,
                                           stdout=subprocess.PIPE, text=True).stdout.strip()
        env["ASAN_OPTIONS"] = "detect_leaks=0:exitcode=86"
        env["TSAN_OPTIONS"] = "exitcode=86"
    return env


class Server:
    """nbdkit with the mirror filter, in a private directory that close() removes."""

    all = []

    @classmethod
    def discard_all(cls):
        """After a failure: end what is left, and remove it."""
        for s in cls.all:
            for p in s.others + [s.process]:
                if p.poll() is None:
                    p.kill()
                    p.wait()
            shutil.rmtree(s.dir, ignore_errors=True)
        cls.all = []

    def __init__(self, size=1 << 20, args=(), plugin=None, filters=(), **parameters):
        self.dir = tempfile.mkdtemp(prefix="nbdmirror-filter.", dir="/tmp")
        self.socket = self.dir + "/nbd"
        self.control = self.dir + "/control"
        self.disk = self.dir + "/disk"
        with open(self.disk, "wb") as f:
            f.truncate(size)
        self.args, self.filters = list(args), list(filters)
        self.plugin = plugin or ["file", self.disk]
        self.parameters = ["mirror-%s=%s" % (k.replace("_", "-"), v) for k, v in parameters.items()]
        self.clients = []
        self.handles = []
        self.process = None
        self.others = []        # workers, to be ended with it
        Server.all.append(self)
        self.start()

    def command(self):
        command = ["nbdkit", "-f", "--exit-with-parent", "-P", self.dir + "/pid", "-U", self.socket,
                   *self.args]
        command += ["--filter=" + filter_path()]
        command += ["--filter=" + f for f in self.filters]
        return command + self.plugin + ["mirror-control=" + self.control] + self.parameters

    def start(self, wait=True):
        for path in self.socket, self.dir + "/pid":
            if os.path.exists(path):
                os.unlink(path)
        with open(self.dir + "/log", "ab") as log:
            self.process = subprocess.Popen(self.command(), stderr=log, stdin=subprocess.DEVNULL,
                                            env=server_environment())
        end = time.monotonic() + 20
        while wait and not os.path.exists(self.dir + "/pid"):        # written when it listens
            assert self.process.poll() is None, "nbdkit ended:\n" + self.log()
            assert time.monotonic() < end, "nbdkit does not listen"
            time.sleep(0.01)

    def log(self):
        return open(self.dir + "/log", errors="replace").read()

    def client(self):
        c = Client(self.control)
        self.clients.append(c)
        return c

    def guest(self, export=""):
        h = nbd.NBD()
        h.set_export_name(export)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(self.socket)
        h.connect_socket(os.dup(sock.fileno()))
        self.handles.append((h, sock))
        return h

    def cut(self, guest):
        """This guest's connection breaks."""
        for pair in self.handles:
            if pair[0] is guest:
                pair[1].shutdown(socket.SHUT_RDWR)
                pair[1].close()
                self.handles.remove(pair)
                return

    def hang_up(self):
        for c in self.clients:
            c.close()
        self.clients = []
        for h, sock in self.handles:
            try:
                h.shutdown()
            except nbd.Error:
                pass
            sock.close()
        self.handles = []

    @contextlib.contextmanager
    def terminating(self):
        """SIGTERM, and what has to come of it is in the body.  ThreadSanitizer puts the handler of
        a signal off, for good if nbdkit is just about to poll() (1 of some hundred): there it is
        sent again until the body is done."""
        done = threading.Event()

        def send():
            while "libtsan" in server_environment().get("LD_PRELOAD", "") and not done.wait(2):
                self.process.terminate()
        self.process.terminate()
        sender = threading.Thread(target=send)
        sender.start()
        try:
            yield
        finally:
            done.set()
            sender.join()

    def stop(self, signal_=signal.SIGTERM, timeout=10):
        """End it; returns the seconds it took."""
        begin = time.monotonic()
        self.process.send_signal(signal_)
        if "LD_PRELOAD" in server_environment():
            timeout = min(timeout, 4)
        self.status = self.process.wait(timeout)
        return time.monotonic() - begin

    def end(self):
        """End it kindly and see that it does.  With a sanitizer's runtime preloaded, nbdkit 1.32
        hangs in its last exit handlers (p11-kit's) once it has logged an error, with or without the
        filter: what counts there is that the filter's cleanup was reached.  And see terminating()
        about signals."""
        try:
            self.stop()
        except subprocess.TimeoutExpired:
            end = time.monotonic() + 20
            while os.path.exists(self.control) and time.monotonic() < end:
                self.process.terminate()
                time.sleep(0.5)
            self.process.kill()
            self.process.wait()
            if "LD_PRELOAD" not in server_environment() or os.path.exists(self.control):
                raise
        else:
            assert self.status == 0, "nbdkit ended with %s:\n%s" % (self.status, self.log())

    def ends_by_itself(self, timeout=8):
        """After a signal: does it end?"""
        try:
            return self.process.wait(timeout) == 0
        except subprocess.TimeoutExpired:
            if "LD_PRELOAD" not in server_environment() or os.path.exists(self.control):
                return False
            self.process.kill()
            self.process.wait()
            return True

    def close(self):
        try:
            if self.process.poll() is None:
                self.hang_up()
                self.end()
            log = self.log()
            assert "runtime error:" not in log and "Sanitizer" not in log, log
        finally:
            Server.all.remove(self)
            shutil.rmtree(self.dir)


def run_tests(tests):
    """The main program of a script of TESTS: -v, and names of those that are wanted.  Returns its
    exit status."""
    verbose = "-v" in sys.argv
    wanted = [a for a in sys.argv[1:] if a != "-v"]
    failed = 0
    if not os.path.exists(filter_path()):
        print("FAIL: %s is not built: run from the build directory, or give "
              "$builddir" % filter_path())
        return 1
    for f in tests:
        if wanted and f.__name__ not in wanted:
            continue
        begin = time.monotonic()
        try:
            f()
        except Exception:                           # pylint: disable=broad-except
            failed += 1
            print("FAIL: %s: %s" % (f.__name__, f.__doc__), flush=True)
            sys.excepthook(*sys.exc_info())
            Server.discard_all()
        else:
            if verbose:
                print("ok: %s (%.1f s)" % (f.__name__, time.monotonic() - begin), flush=True)
    print("%d failed" % failed)
    return 1 if failed else 0
