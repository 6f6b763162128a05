# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the benchmarks share: where the programs are, servers, timing, tables, results.

All comparisons are interleaved (every contestant once, then all again, in turning order), and
told as medians and as the median of the ratios within a round: a machine that is busy with
something else slows down neighbours alike.
"""

import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

SRCDIR = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.append(os.path.join(SRCDIR, "tests/guest"))
import strays  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")


def say(text):
    print(text, file=sys.stderr, flush=True)


class Unavailable(Exception):
    """Something that the benchmark needs is not here: skipped, with this text."""


def need(*programs):
    for program in programs:
        if not shutil.which(program):
            raise Unavailable(f"{program} is not installed")


def size_text(n):
    for unit, name in ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (1024, "KiB")):
        if n >= unit:
            return f"{n / unit:.4g} {name}"
    return f"{n} B"


# ---- where things are ------------------------------------------------------------------

class Setup:
    """One run of a benchmark: options, the build, a private directory for disks and sockets."""

    def __init__(self, args):
        self.smoke = args.smoke
        self.verbose = args.verbose
        self.builddir = find_build(args.build)
        self.nbdmirror = os.path.join(self.builddir, "nbdmirror")
        self.filter = os.path.join(self.builddir, "nbd-plugin/.libs/nbdkit-mirror-filter.so")
        for path in (self.nbdmirror, self.filter):
            if not os.path.exists(path):
                raise Unavailable(f"{path} is not built")
        os.environ["NBDMIRROR_FILTER"] = self.filter
        # Sockets apart from the disks: their paths must be short.
        self.tmp = tempfile.mkdtemp(prefix="nbdmirror-bench.", dir="/tmp")
        self.disks = tempfile.mkdtemp(prefix="nbdmirror-bench.", dir=args.dir)
        shm = "/dev/shm" if os.access("/dev/shm", os.W_OK) else self.disks
        self.shm = tempfile.mkdtemp(prefix="nbdmirror-bench.", dir=shm)

    def remove(self):
        strays.end(self.tmp, self.disks, self.shm)
        for path in (self.tmp, self.disks, self.shm):
            shutil.rmtree(path, ignore_errors=True)


def find_build(given):
    candidates = [given] if given else [".", os.path.join(SRCDIR, "build"), SRCDIR]
    for path in candidates:
        if os.path.isfile(os.path.join(path, "config.status")):
            return os.path.abspath(path)
    raise Unavailable("no build found: run from the build directory, or give --build DIR")


def uri(path):
    return f"nbd+unix:///?socket={path}"


# ---- processes -------------------------------------------------------------------------

class Run:
    """A program that has ended: how long it took, and what it cost."""

    def __init__(self, argv, timeout=600):
        self.argv = argv
        out = tempfile.TemporaryFile()
        start = time.monotonic()
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        timer = signal.signal(signal.SIGALRM, lambda *_: process.kill())
        signal.alarm(timeout)
        _, status, usage = os.wait4(process.pid, 0)
        self.seconds = time.monotonic() - start
        signal.alarm(0)
        signal.signal(signal.SIGALRM, timer)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu = usage.ru_utime + usage.ru_stime
        self.max_rss = usage.ru_maxrss * 1024
        out.seek(0)
        self.output = out.read().decode(errors="replace")
        if process.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)}: exit status {process.returncode}\n{self.output}")


def call(*argv):
    """Run it, and fail with what it has said."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: exit status {done.returncode}\n{done.stdout}")


class Server:
    """A server in the foreground, ready once its socket is there; a context manager."""

    def __init__(self, setup, argv, sock, log=None):
        self.sock = sock
        self.uri = uri(sock)
        self.log = log or os.path.join(setup.tmp, os.path.basename(sock) + ".log")
        with open(self.log, "w") as out:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        deadline = time.monotonic() + 20
        while not listening(sock):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                self.process.wait()
                raise RuntimeError(f"{' '.join(argv)}: does not listen\n{open(self.log).read()}")
            time.sleep(0.01)

    @property
    def pid(self):
        return self.process.pid

    def cpu(self, children=False):
        """Processor time in seconds, with that of the processes that it has started if CHILDREN."""
        seconds = process_cpu(self.pid)
        if children:
            with open(f"/proc/{self.pid}/task/{self.pid}/children") as f:
                seconds += sum(process_cpu(int(pid)) for pid in f.read().split())
        return seconds

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.sock)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def listening(path):
    """Does a server listen there?  Looked up without connecting, which would count as a client.
    Between bind and listen the socket is there, unconnected (state 01) and without flags."""
    if not os.path.exists(path):
        return False
    with open("/proc/net/unix", encoding="ascii", errors="replace") as f:
        return not any(w[7:] == [path] and w[3] == "00000000" and w[5] == "01"
                       for w in map(str.split, f))


def nbdkit(setup, name, *args, options=()):
    sock = os.path.join(setup.tmp, name + ".sock")
    return Server(setup, ["nbdkit", "-f", "-U", sock, *options, *args], sock)


def serve(setup, name, disk, *options):
    """`nbdmirror serve`; the server gets the member control."""
    sock = os.path.join(setup.tmp, name + ".sock")
    control = os.path.join(setup.tmp, name + ".control")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(control + ".fence")  # of a hand-over in an earlier run
    server = Server(setup, [setup.nbdmirror, "serve", disk, "--socket", sock, "--control", control,
                            *options], sock)
    server.control = control
    deadline = time.monotonic() + 10
    while not os.path.exists(control) and time.monotonic() < deadline:
        time.sleep(0.01)
    return server


def process_cpu(pid):
    """User and system seconds of a process, all its threads."""
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_of(pid):
    """Resident bytes: {"anon", "file", "shmem"}."""
    names = {"RssAnon": "anon", "RssFile": "file", "RssShmem": "shmem"}
    result = {}
    with open(f"/proc/{pid}/status") as f:
        for line in f:
            name, _, rest = line.partition(":")
            if name in names:
                result[names[name]] = int(rest.split()[0]) * 1024
    return result


# ---- disks -----------------------------------------------------------------------------

def make_disk(path, data, holes, piece=64 * MIB):
    """DATA bytes of random data and HOLES bytes of holes, in turns, PIECE bytes each."""
    size = data + holes
    with open(path, "wb") as f:
        f.truncate(size)
        pos = 0
        while data > 0:
            n = min(piece, data)
            f.seek(pos)
            for _ in range(n // MIB):
                f.write(os.urandom(MIB))
            f.write(os.urandom(n % MIB))
            data -= n
            pos += n
            hole = min(piece, holes)
            holes -= hole
            pos += hole
        f.flush()
        os.fsync(f.fileno())


def make_cold(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def make_warm(path):
    with open(path, "rb", buffering=0) as f:
        while f.read(4 * MIB):
            pass


def make_warm_data(path):
    """The same without the holes."""
    fd = os.open(path, os.O_RDONLY)
    with contextlib.suppress(OSError):  # ENXIO: no more data
        end = 0
        while True:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
            for at in range(start, end, 4 * MIB):
                os.pread(fd, min(4 * MIB, end - at), at)
    os.close(fd)


# ---- figures ---------------------------------------------------------------------------

def median(values):
    values = [v for v in values if v is not None]
    return statistics.median(values) if values else None


def ratio(values, base):
    """The median of the ratios within the rounds."""
    return median([v / b for v, b in zip(values, base) if v is not None and b])


def ready_text(times):
    """The median of TIMES, in which None is "never"; how many it is of, if not all."""
    found = [t for t in times if t is not None]
    if not found:
        return "never"
    return f"{median(found):.2f}" + ("" if len(found) == len(times)
                                     else f" ({len(found)} of {len(times)})")


def turned(items, n):
    """ITEMS beginning with the Nth, so that nobody is always the first."""
    items = list(items)
    n %= len(items)
    return items[n:] + items[:n]


def table(headings, rows):
    """ROWS of text or numbers as aligned text."""
    cells = [headings] + [["-" if c is None else f"{c:.2f}" if isinstance(c, float) else str(c)
                           for c in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    lines = []
    for n, row in enumerate(cells):
        lines.append("  ".join(c.ljust(w) if i == 0 else c.rjust(w)
                               for i, (c, w) in enumerate(zip(row, widths))).rstrip())
        if n == 0:
            lines.append("  ".join("-" * w for w in widths))
    return "\n".join(lines)


def version(*argv):
    with contextlib.suppress(OSError):
        out = subprocess.run(argv, capture_output=True, text=True, timeout=20).stdout.splitlines()
        return out[0].strip() if out else None
    return None


def environment():
    info = {}
    with contextlib.suppress(OSError), open("/etc/os-release") as f:
        info = dict(line.rstrip().split("=", 1) for line in f if "=" in line)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": socket.gethostname(),
        "system": info.get("PRETTY_NAME", "").strip('"'),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "nbdkit": version("nbdkit", "--version"),
        "nbdcopy": version("nbdcopy", "--version"),
        "qemu-img": version("qemu-img", "--version"),
        "fio": version("fio", "--version"),
    }


def write_results(path, what, results):
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    document = {"benchmark": what, "environment": environment(), "results": results}
    with open(path, "w") as f:
        json.dump(document, f, indent=1)
        f.write("\n")
