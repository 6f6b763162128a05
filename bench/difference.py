# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sending only the difference: a disk of which the destination holds all but a few changes, copied
by `nbdmirror copy --sync top|base|compare` to `nbdmirror receive`, beside what others do.

  top, base   to a new qcow2 overlay on the destination's own copy of the base; the source of `top`
              is an overlay as well.  The digests of the bases are kept already
  compare     to a raw disk that holds the base
  nbdcopy     sends everything, to an nbdkit
  convert -B  qemu-img convert -n -B: from overlay to overlay, both local files, so no line
  compare-img qemu-img compare of two local raw files; it writes nothing, so only where none differs
  rsync       --inplace --no-whole-file, to an rsync behind a pair of sockets

Base, source and destination are in the page cache; everything runs on this host.

  seconds   of the command, to its end; all flush
  ÷ rsync   the time divided by rsync's, within a round
  here      processor seconds of the source's side, and there: of the destination's
  sent, got what went to the destination and what came back, MiB: counted in one further run, which
            also proves that the destination holds what the source does

A contestant whose first run takes longer than --once seconds runs only once.
"""

import os
import random
import re
import shutil

import common
import difference_systems as systems
from common import GIB, MIB, median, ratio, size_text, table

SIZES = {"4G": 4 * GIB, "64G": 64 * GIB}
PIECES = {"4k": 4096, "1M": MIB}


def add_options(parser):
    parser.add_argument("--sizes", default="4G,64G", metavar="LIST", help="(%(default)s)")
    parser.add_argument("--data", type=int, default=2048, metavar="MIB",
                        help="random data in the disk; the rest is holes (%(default)s)")
    parser.add_argument("--changed", default="0,0.01,0.1,1,10", metavar="LIST",
                        help="percent of the data (%(default)s)")
    parser.add_argument("--pieces", default="4k,1M", metavar="LIST",
                        help="changes are runs of so many bytes (%(default)s)")
    parser.add_argument("--systems", default=",".join(systems.SYSTEMS), metavar="LIST",
                        help="(%(default)s)")
    parser.add_argument("--once", type=float, default=15, metavar="S", help="(%(default)s)")


class Disks:
    """base and there (the destination's copy of it), source, dest: raw.  The difference between
    source and base is a list of offsets, each of a piece."""

    def __init__(self, setup, size, data):
        self.setup, self.size = setup, size
        self.base, self.there, self.source, self.dest = (
            os.path.join(setup.disks, name) for name in ("base.img", "there.img", "source.img",
                                                         "dest.img"))
        self.layer = os.path.join(setup.disks, "source.qcow2")
        self.overlay = os.path.join(setup.disks, "dest.qcow2")
        self.data, self.offsets, self.piece = data, [], 0
        self.chunk = min(64 * MIB, data // 4)
        common.make_disk(self.base, data, size - data, self.chunk)
        for path in (self.there, self.source, self.dest):
            common.call("cp", "--sparse=always", self.base, path)

    def change(self, percent, piece, seed):
        """Make source differ, and its layer on the base with it."""
        rng = random.Random(seed)
        self.piece = piece
        count = int(self.data * percent / 100 / piece)
        if percent > 0:
            count = max(1, count)
        places = rng.sample(range(self.data // piece), count)
        self.offsets = sorted(self.place(n * piece) for n in places)
        with open(self.source, "r+b", buffering=0) as f:
            for offset in self.offsets:
                os.pwrite(f.fileno(), rng.randbytes(piece), offset)
            os.fsync(f.fileno())
        self.new_overlay(self.layer, self.base)
        common.call(self.setup.nbdmirror, "copy", self.source, self.layer, "--dest-format", "qcow2",
                    "--sync", "base", "--base", self.base, "--trust-base")
        return count * piece

    def place(self, n):
        """Where byte N of the data is: data and holes take turns, as make_disk() lays them out."""
        chunk, within = divmod(n, self.chunk)
        return chunk * min(2 * self.chunk, self.size // (self.data // self.chunk)) + within

    def restore(self, path):
        """Make a raw disk equal to the base again, where it may differ."""
        with open(self.base, "rb", buffering=0) as base, open(path, "r+b", buffering=0) as f:
            for offset in self.offsets:
                os.pwrite(f.fileno(), os.pread(base.fileno(), self.piece, offset), offset)
            os.fsync(f.fileno())

    @staticmethod
    def new_overlay(path, base):
        common.call("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path)

    def warm(self):
        for path in (self.base, self.there, self.source, self.dest):
            common.make_warm_data(path)


def one_case(setup, disks, names, runs, once):
    """{system: {"runs": [...], "sent", "got"}}"""
    results = {name: {"runs": [], "sent": None, "got": None} for name in names}
    for name in names:  # not timed: what goes over the line, and is it right?
        results[name]["sent"], results[name]["got"] = systems.SYSTEMS[name](disks).count()
    for n in range(runs):
        for name in common.turned(names, n):
            done = results[name]["runs"]
            if done and done[0]["seconds"] > once:
                continue
            done.append(systems.SYSTEMS[name](disks).measure())
            if setup.verbose:
                common.say(f"{name}: {done[-1]}")
    return results


def summary(results):
    """Medians, and how they compare with rsync's."""
    rsync = [r["seconds"] for r in results.get("rsync", {"runs": []})["runs"]]
    for r in results.values():
        for key in ("seconds", "here", "there"):
            r[key] = median([run[key] for run in r["runs"]])
        seconds = [run["seconds"] for run in r["runs"]]
        r["to-rsync"] = ratio(seconds, rsync or [None]) if rsync else None
        if len(rsync) < len(seconds) and rsync:  # rsync ran once only
            r["to-rsync"] = median(seconds) / rsync[0]


def choose(wanted):
    names = [name for name in systems.SYSTEMS if name in wanted]
    for name in list(names):
        missing = [p for p in systems.SYSTEMS[name].needs if not shutil.which(p)]
        if missing:
            common.say(f"{name}: left out: {', '.join(missing)} is not installed")
            names.remove(name)
    return names


def mib(n):
    return None if n is None else round(n / MIB, 2)


def run(setup, args):
    common.need("nbdkit", "qemu-img", "qemu-nbd")
    systems.set_up(setup)
    runs = args.runs or 3
    sizes = {name: SIZES[name] for name in args.sizes.split(",")}
    data, pieces, changed = args.data * MIB, args.pieces.split(","), args.changed.split(",")
    if setup.smoke:
        runs, sizes, data, pieces, changed = 1, {"64M": 64 * MIB}, 16 * MIB, ["4k"], ["1"]
    names = choose(args.systems.split(","))
    results, rows = [], []
    for name, size in sizes.items():
        disks = Disks(setup, size, data)
        systems.keep_digests(setup, disks)
        for percent in changed:
            for piece in pieces if float(percent) > 0 else pieces[:1]:
                seed = int(re.sub(r"\D", "", percent)) + PIECES[piece]
                different = disks.change(float(percent), PIECES[piece], seed)
                disks.warm()
                applying = [n for n in names if systems.SYSTEMS[n].applies(different)]
                case = one_case(setup, disks, applying, runs, args.once)
                summary(case)
                disks.restore(disks.source)
                results.append({"size": size, "data": data, "changed": different, "piece": piece,
                                "systems": case})
                for system, r in case.items():
                    rows.append([f"{name} {percent} % {piece if different else ''}", system,
                                 r["seconds"], r["to-rsync"], r["here"], r["there"], mib(r["sent"]),
                                 mib(r["got"])])
                common.say(f"{size_text(size)}, {percent} % changed, {piece}: " + ", ".join(
                    f"{s} {r['seconds']:.2f} s" for s, r in case.items()))
        for path in (disks.base, disks.there, disks.source, disks.dest):
            os.unlink(path)
    print(table(["disk, changed, pieces", "", "seconds", "÷ rsync", "here", "there", "sent", "got"],
                rows))
    return results
