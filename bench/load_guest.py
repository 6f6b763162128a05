# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guest of `bench/run load`: one fio job that writes all through a run, and what its log tells.

fio logs every write: when it was done (milliseconds since the epoch) and how long it took.  All
figures are of windows of that one log, so that "before" and "during" are the same job on the same
connection. """

import array
import bisect
import contextlib
import os
import signal
import subprocess
import time

import common

PATTERNS = {
    "uniform": [],
    "zipf": ["--random_distribution=zipf:1.1"],
    "hotspot": ["--random_distribution=zoned:90/5:10/95"],  # 90 % of the writes to 5 % of the disk
}
SETTLE_S = 0.5  # of fio's first writes, which are left out


class Guest:
    """fio writes 4 KiB at a time at random places; RATE a second, 0 as fast as it goes."""

    def __init__(self, setup, uri, size, rate, pattern, iodepth, seed):
        self.prefix = os.path.join(setup.tmp, "guest")
        self.log = self.prefix + "_lat.log"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.log)
        argv = ["fio", "--name=guest", "--ioengine=nbd", "--uri=" + uri, "--rw=randwrite",
                "--bs=4k",
                f"--size={size}", f"--iodepth={iodepth}", "--norandommap", "--allrandrepeat=1",
                f"--randseed={seed}", "--time_based", "--runtime=3600",
                "--write_lat_log=" + self.prefix,
                "--disable_clat=1", "--disable_slat=1", "--per_job_logs=0", "--log_unix_epoch=1",
                "--output-format=json", *PATTERNS[pattern]]
        if rate:
            argv.append(f"--rate_iops={rate}")
        self.output = open(os.path.join(setup.tmp, "guest.out"), "w+")
        # In a directory of its own making: some versions leave files behind.
        self.process = subprocess.Popen(argv, cwd=setup.tmp, stdin=subprocess.DEVNULL,
                                        stdout=self.output, stderr=subprocess.STDOUT)

    def alive(self):
        return self.process.poll() is None

    def stop(self):
        """Lets it finish what is in flight; returns its Log."""
        # fio says so within a second or so of the signal; it also writes the log then.
        if self.alive():
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.kill()
                raise RuntimeError("the guest (fio) does not end") from None
        if not os.path.exists(self.log):
            self.output.seek(0)
            raise RuntimeError(f"fio wrote no log:\n{self.output.read()}")
        return Log(self.log)

    def kill(self):
        if self.alive():
            self.process.kill()
            self.process.wait()
        self.output.close()


class Log:
    """Completions in order of time: .done (seconds since the epoch), .ms (latency)."""

    def __init__(self, path):
        rows = []
        with open(path, "rb") as f:
            for line in f:
                a, b, _ = line.split(b",", 2)
                rows.append((int(a), int(b)))
        rows.sort()
        self.done = array.array("d", (t / 1000 for t, _ in rows))
        self.ms = array.array("d", (ns / 1e6 for _, ns in rows))

    def start(self):
        return self.done[0] + SETTLE_S if self.done else 0

    def window(self, begin, end):
        return bisect.bisect_left(self.done, begin), bisect.bisect_right(self.done, end)

    def figures(self, begin, end):
        """IOPS and latencies of what was done in a stretch of time; None where nothing was."""
        i, j = self.window(begin, end)
        values = sorted(self.ms[i:j])
        n = len(values)
        if n == 0 or end <= begin:
            return {"iops": 0.0, "p50-ms": None, "p99-ms": None, "max-ms": None, "writes": 0}
        return {"iops": n / (end - begin), "p50-ms": values[n // 2],
                "p99-ms": values[n * 99 // 100],
                "max-ms": values[-1], "writes": n}

    def gap(self, begin, end):
        """Milliseconds: the longest time without a completion that touches this stretch."""
        i, j = self.window(begin, end)
        times = self.done[max(0, i - 1):j + 1]
        return max((1000 * (b - a) for a, b in zip(times, times[1:])), default=None)

    def silence(self, at):
        """Milliseconds that nothing had been completed for at that instant."""
        i, _ = self.window(at, at)
        return max(0.0, 1000 * (at - self.done[i - 1])) if i else None

    def series(self, begin, end, step):
        """[seconds after BEGIN, writes a second, p99 in ms or None] for each STEP."""
        result = []
        t = begin
        while t < end:
            f = self.figures(t, t + step)
            result.append([round(t + step / 2 - begin, 3), round(f["iops"]),
                           None if f["p99-ms"] is None else round(f["p99-ms"], 3)])
            t += step
        return result


def check():
    common.need("fio")
    engines = subprocess.run(["fio", "--enghelp"], capture_output=True, text=True).stdout.split()
    if "nbd" not in engines:
        raise common.Unavailable("this fio has no NBD engine")


def wait_for(seconds, guest):
    """Sleeps, but not beside a guest that has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not guest.alive():
            guest.output.seek(0)
            raise RuntimeError(f"the guest (fio) ended by itself:\n{guest.output.read()}")
        time.sleep(min(0.1, max(0.0, end - time.monotonic())))
