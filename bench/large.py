# SPDX-License-Identifier: LGPL-2.1-or-later
"""Very large, almost empty disks: sparse files of 1 TiB and of 16 TiB - 4 KiB (ext4's largest) with
some random data, served with tracking and mirrored to an empty nbdkit memory disk while nobody
writes.

  region      the shared memory of filter and worker (dirty bitmap), resident
  worker      resident memory of the worker beside the region, at most
  filter      resident memory of the source's nbdkit beside the region: how much it grew
  first byte  from the start of `nbdmirror mirror` to the first write at the destination
  whole       from its start to its end, hand-over included
  pause       downtime-ms of the report: how long writes were held
"""

import json
import os
import re
import subprocess
import time

import common
from common import GIB, MIB, TIB, median, size_text, table

SIZES = {"64G": 64 * GIB, "1T": TIB, "16T": 16 * TIB - 4096}


def add_options(parser):
    parser.add_argument("--sizes", default="1T,16T", metavar="LIST", help="of " + ", ".join(SIZES))
    parser.add_argument("--data", type=int, default=100, metavar="MIB", help="random data (100)")


def make_sparse(path, size, data):
    """Pieces of 1 MiB, spread evenly, and one at the end."""
    with open(path, "wb") as f:
        f.truncate(size)
        n = max(1, data // MIB - 1)
        for i in range(n):
            f.seek(size // n * i & ~4095)
            f.write(os.urandom(MIB))
        f.seek(size - MIB)
        f.write(os.urandom(MIB))


def watch(process, server):
    """Until the worker ends: the most memory of both, beside shared memory, and of the region."""
    most = {"worker": 0, "filter": 0, "region": 0}
    while process.poll() is None:
        for name, pid in (("worker", process.pid), ("filter", server.pid)):
            try:
                rss = common.memory_of(pid)
            except OSError:
                continue
            most[name] = max(most[name], rss.get("anon", 0) + rss.get("file", 0))
            if name == "worker":
                most["region"] = max(most["region"], rss.get("shmem", 0))
        time.sleep(0.005)
    return most


def first_write(log):
    """When the destination got its first write, in seconds since the epoch."""
    pattern = re.compile(r"(\d+-\d+-\d+ \d+:\d+:\d+)\.(\d+).* Write ")
    with open(log) as f:
        for line in f:
            m = pattern.search(line)
            if m:
                return time.mktime(time.strptime(m[1], "%Y-%m-%d %H:%M:%S")) + float("0." + m[2])
    return None


def one(setup, source, size):
    log = os.path.join(setup.tmp, "dest-requests.log")
    report = os.path.join(setup.tmp, "report.json")
    with common.serve(setup, "source", source) as server, \
         common.nbdkit(setup, "dest", "memory", str(size), "logfile=" + log,
                       options=["--filter=log"]) as dest:
        before = common.memory_of(server.pid)
        begin, start = time.time(), time.monotonic()
        process = subprocess.Popen([setup.nbdmirror, "mirror", server.control, dest.uri,
                                    "--on-ready", "complete", "--report", report],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.PIPE, text=True)
        most = watch(process, server)
        seconds = time.monotonic() - start
        error = process.stderr.read()
        if process.returncode != 0:
            raise RuntimeError(f"nbdmirror mirror ended with {process.returncode}: {error}")
        written = first_write(log)
    with open(report) as f:
        told = json.load(f)
    return {
        "region": most["region"],
        "worker": most["worker"],
        "filter": most["filter"] - before.get("anon", 0) - before.get("file", 0),
        "first-byte-s": None if written is None else written - begin,
        "seconds": seconds,
        "pause-ms": told["downtime-ms"],
        "sent": told["sent-bytes"],
    }


def run(setup, args):
    common.need("nbdkit")
    runs = args.runs or 5
    sizes, data = args.sizes.split(","), args.data * MIB
    if setup.smoke:
        runs, sizes, data = 1, ["64G"], 4 * MIB
    results, rows = [], []
    for name in sizes:
        source = os.path.join(setup.disks, "large.img")
        try:
            make_sparse(source, SIZES[name], data)
        except OSError as e:
            common.say(f"{name}: skipped: {e}")
            continue
        figures = []
        for _ in range(runs):
            figures.append(one(setup, source, SIZES[name]))
            if setup.verbose:
                common.say(f"{name}: {figures[-1]}")
        os.unlink(source)
        r = {"size": SIZES[name], "runs": figures}
        for key in figures[0]:
            r[key] = median([f[key] for f in figures])
        results.append(r)
        rows.append([size_text(r["size"]), size_text(r["sent"]), size_text(r["region"]),
                     size_text(r["worker"]), size_text(max(0, r["filter"])), r["first-byte-s"],
                     r["seconds"], r["pause-ms"]])
    print(table(["disk", "sent", "region", "worker", "filter", "first byte s", "whole s",
                 "pause ms"],
                rows))
    return results
