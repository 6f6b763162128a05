# SPDX-License-Identifier: LGPL-2.1-or-later
"""Copying an idle disk: `nbdmirror copy`, nbdcopy and qemu-img convert, from a local file to an NBD
export over a unix socket; and `nbdmirror mirror` of a served disk that nobody writes to, end to
end (hand-over and flush included).

Destinations, all served by nbdkit:
  null    throws away: what the client itself costs
  memory  a new server each time
  file    a new sparse file on tmpfs: everything but the disk
  disk    a new sparse file in --dir (only where asked for): mostly the disk's speed

Everybody flushes at the end (nbdcopy --flush; the others always do), and nobody is told that
the destination reads as zero.
"""

import os

import common
from common import GIB, MIB, Run, median, ratio, table, turned

DESTINATIONS = ("null", "memory", "file", "disk")


def add_options(parser):
    parser.add_argument("--data", type=int, default=2048, metavar="MIB",
                        help="random data (2048), and as much again of holes")
    parser.add_argument("--dest", default="null,memory,file", metavar="LIST",
                        help="of null, memory, file, disk")
    parser.add_argument("--cache", default="warm,cold", metavar="LIST",
                        help="the source in the page cache: warm, cold")
    parser.add_argument("--tools", default="copy,mirror,nbdcopy,qemu-img", metavar="LIST")


def destination(setup, kind, size):
    if kind in ("file", "disk"):
        path = os.path.join(setup.shm if kind == "file" else setup.disks, "dest.img")
        if os.path.exists(path):
            os.unlink(path)
        with open(path, "wb") as f:
            f.truncate(size)
        return common.nbdkit(setup, "dest", "file", path)
    return common.nbdkit(setup, "dest", kind, str(size))


def command(setup, tool, source, control, dest):
    if tool == "copy":
        return [setup.nbdmirror, "copy", source, dest]
    if tool == "mirror":
        return [setup.nbdmirror, "mirror", control, dest, "--on-ready", "complete"]
    if tool == "nbdcopy":
        return ["nbdcopy", "--flush", source, dest]
    return ["qemu-img", "convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw", source,
            "nbd:unix:" + dest.partition("socket=")[2]]


def one(setup, tool, source, cache, kind, size):
    """One copy: seconds, and CPU seconds of the client and of the destination's server."""
    (common.make_cold if cache == "cold" else common.make_warm)(source)
    server = common.serve(setup, "source", source) if tool == "mirror" else None
    try:
        with destination(setup, kind, size) as dest:
            before = dest.cpu()
            run = Run(command(setup, tool, source, server and server.control, dest.uri))
            figures = {"seconds": run.seconds, "cpu": run.cpu, "server-cpu": dest.cpu() - before}
    finally:
        if server:
            server.stop()
    if kind == "file" and setup.smoke:
        check_equal(source, os.path.join(setup.shm, "dest.img"))
    return figures


def check_equal(a, b):
    with open(a, "rb") as f, open(b, "rb") as g:
        while True:
            x, y = f.read(MIB), g.read(MIB)
            if x != y:
                raise RuntimeError(f"{a} and {b} differ")
            if not x:
                return


def run(setup, args):
    runs = args.runs or 5
    data = args.data * MIB
    tools = args.tools.split(",")
    if setup.smoke:
        data, runs = 8 * MIB, 1
    common.need("nbdkit", *(t for t in tools if t in ("nbdcopy", "qemu-img")))
    source = os.path.join(setup.disks, "source.img")
    common.say(f"making a disk: {common.size_text(data)} of data, as much of holes")
    common.make_disk(source, data, data, min(64 * MIB, data // 4))
    results, rows = [], []
    for cache in args.cache.split(","):
        for kind in args.dest.split(","):
            figures = {tool: [] for tool in tools}
            for n in range(runs):
                for tool in turned(tools, n):
                    f = one(setup, tool, source, cache, kind, 2 * data)
                    figures[tool].append(f)
                    if setup.verbose:
                        common.say(f"{cache} {kind} {tool}: {f['seconds']:.3f} s, "
                                  f"CPU {f['cpu']:.3f} + {f['server-cpu']:.2f}")
            more = summary(figures, cache, kind)
            results += more
            rows += [[r["cache"], r["dest"], r["tool"], r["seconds"], r["cpu"], r["server-cpu"],
                      r["time / nbdcopy"], r["time / qemu-img"], r["cpu / nbdcopy"]] for r in more]
    print(table(["source", "dest", "tool", "s", "CPU s", "server CPU", "time/nbdcopy",
                 "time/qemu-img", "CPU/nbdcopy"], rows))
    return results


def summary(figures, cache, kind):
    def column(tool, key):
        return [f[key] for f in figures.get(tool, [])]

    return [{
        "cache": cache, "dest": kind, "tool": tool, "runs": figures[tool],
        "seconds": median(column(tool, "seconds")),
        "cpu": median(column(tool, "cpu")),
        "server-cpu": median(column(tool, "server-cpu")),
        "time / nbdcopy": ratio(column(tool, "seconds"), column("nbdcopy", "seconds")),
        "time / qemu-img": ratio(column(tool, "seconds"), column("qemu-img", "seconds")),
        "cpu / nbdcopy": ratio(column(tool, "cpu"), column("nbdcopy", "cpu")),
    } for tool in figures]
