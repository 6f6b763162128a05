# SPDX-License-Identifier: LGPL-2.1-or-later
"""Backups of a disk that is served: a full one, incremental ones after changes, and a restore, by
`nbdmirror backup` and `restore` beside what others do.

  nbdmirror  a repository of qcow2 files; the record of changes survives crashes
  qemu       qemu-storage-daemon: blockdev-backup to qcow2 files, by a dirty bitmap in memory
  pull       virtnbdbackup's way: QEMU exports the bitmap, libnbd reads in Python
  borg       borg create of the raw image, which reads all of it each time
  restic     restic backup of the raw image; the same

The disk is a raw file in the page cache, DATA MiB of random data and the rest holes.  Everything
that is written is on the disk when the time ends; nbdmirror alone has also read it back.  The
restored disk is compared with the source.

  seconds  of the command, or from asking QEMU to the end of its job and an fsync
  ÷ qemu   the time divided by QEMU's, within a round
  cpu      processor seconds of the command and of what serves the disk
  grown    by how many MiB the backups have grown, and what was changed

Then the same with a guest that writes (fio, 4 KiB at random, --rate a second): a full backup,
limited to --limit MiB/s where that can be said, and the guest's p99 before and during it (goal: at
most twice as long).  And the pause of three disks with such guests, by nbdmirror (goal: at most 30
ms).  `--systems ''` leaves the first part out."""

import os
import random
import shutil
import time

import nbd

import backup_systems as systems
import common
import load_guest
from common import GIB, MIB, median, ratio, size_text, table

PIECES = {"4k": 4096, "64k": 65536}


def add_options(parser):
    parser.add_argument("--size", type=int, default=64, metavar="GIB", help="(%(default)s)")
    parser.add_argument("--data", type=int, default=8192, metavar="MIB", help="(%(default)s)")
    parser.add_argument("--changed", default="0.1,1,10", metavar="LIST",
                        help="percent of the data, changed before each incremental (%(default)s)")
    parser.add_argument("--piece", default="64k", choices=PIECES,
                        help="changes are runs of so many bytes (%(default)s)")
    parser.add_argument("--systems", default=",".join(systems.SYSTEMS), metavar="LIST",
                        help="(%(default)s)")
    parser.add_argument("--guests", default="nbdmirror,qemu", metavar="LIST",
                        help="which of them beside a guest; '' for none (%(default)s)")
    parser.add_argument("--rate", type=int, default=500, metavar="N",
                        help="the guest's writes a second (%(default)s)")
    parser.add_argument("--limit", type=int, default=100, metavar="MIB",
                        help="the limit beside a guest (%(default)s)")


class Disk:
    """A raw file: data and holes take turns.  RNG tells the places and the bytes of changes."""

    def __init__(self, setup, size, data, name="disk.img"):
        self.path = os.path.join(setup.disks, name)
        self.size, self.data = size, data
        self.chunk = min(64 * MIB, data // 4)
        common.make_disk(self.path, data, size - data, self.chunk)

    def change(self, uri, percent, piece, rng):
        """A guest changes random pieces of the data.  Bytes."""
        count = max(1, int(self.data * percent / 100 / piece))
        h = nbd.NBD()
        h.connect_uri(uri)
        for n in sorted(rng.sample(range(self.data // piece), count)):
            chunk, within = divmod(n * piece, self.chunk)
            h.pwrite(rng.randbytes(piece), chunk * min(2 * self.chunk, self.size * self.chunk
                                                       // self.data) + within)
        h.flush()
        h.shutdown()
        return count * piece


def timed(system, what, *args):
    """{"seconds", "cpu", "grown"}"""
    before, cpu = systems.bytes_of(system.repo) if os.path.exists(system.repo) else 0, system.cpu()
    start = time.monotonic()
    used = what(*args)
    seconds = time.monotonic() - start
    return {"seconds": seconds, "cpu": used + system.cpu() - cpu,
            "grown": systems.bytes_of(system.repo) - before}


def one_system(setup, disk, name, changed, piece, rng):
    """{step: figures}: full, each of CHANGED, restore."""
    results = {}
    common.make_warm_data(disk.path)
    system = systems.SYSTEMS[name](setup, disk.path)
    restored = os.path.join(setup.disks, "restored.img")
    try:
        results["full"] = timed(system, system.back_up, True)
        for percent in changed:
            different = disk.change(system.uri, float(percent), piece, rng)
            results[percent] = timed(system, system.back_up, False)
            results[percent]["changed"] = different
        results["restore"] = timed(system, system.restore, restored)
        common.call("qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", disk.path, restored)
    finally:
        system.close()
        if os.path.exists(restored):
            os.unlink(restored)
    return results


def beside_guest(setup, disk, name, rate, limit, seconds):
    """A full backup beside a guest: the guest's figures before and during it."""
    system = systems.SYSTEMS[name](setup, disk.path)
    try:
        guest = load_guest.Guest(setup, system.uri, disk.size, rate, "uniform", 8, 1)
        try:
            load_guest.wait_for(seconds, guest)
            begun = time.time()
            system.back_up(True, limit if system.limited else 0)
            ended = time.time()
            log = guest.stop()
        finally:
            guest.kill()
        pause = None
        if name == "nbdmirror":
            pause = systems.manifest(system.repo)["disks"][0]["pause-ms"]
    finally:
        system.close()
    return {"before": log.figures(log.start(), begun), "during": log.figures(begun, ended),
            "seconds": ended - begun, "pause-ms": pause}


def three_disks(setup, data, rate):
    """The pause of three disks that are backed up at one instant, each with a guest."""
    servers, guests = [], []
    repo = os.path.join(setup.disks, "three")
    try:
        for n in range(3):
            disk = Disk(setup, 2 * data, data, f"three{n}.img")
            servers.append(common.serve(setup, f"three{n}", disk.path, "--state",
                                        disk.path + ".state"))
        uris = [(s.uri, s.control) for s in servers]
        for uri, _ in uris:  # fio names its log after the directory of a Setup
            guests.append(load_guest.Guest(Folder(setup), uri, 2 * data, rate, "uniform", 8, 1))
        time.sleep(2)
        pauses = []
        for _ in range(5):
            systems.run(setup.nbdmirror, "backup", *(control for _, control in uris), repo)
            pauses.append(max(d["pause-ms"] for d in systems.manifest(repo)["disks"]))
        return pauses
    finally:
        for guest in guests:
            guest.kill()
        for server in servers:
            server.stop()
        shutil.rmtree(repo, ignore_errors=True)


class Folder:
    """A directory of its own, for what a guest writes."""

    count = 0

    def __init__(self, setup):
        Folder.count += 1
        self.tmp = os.path.join(setup.tmp, f"guest{Folder.count}")
        os.mkdir(self.tmp)


def mib(n):
    return None if n is None else round(n / MIB, 1)


def times(a, b):
    return a / b if a is not None and b else None


def tell(results, names, steps):
    rows = []
    for step in steps:
        qemu = [run["qemu"][step]["seconds"] for run in results] if "qemu" in names else []
        for name in names:
            runs = [run[name][step] for run in results]
            seconds = [r["seconds"] for r in runs]
            rows.append([step if step in ("full", "restore") else f"{step} %", name,
                         median(seconds), ratio(seconds, qemu) if qemu else None,
                         median([r["cpu"] for r in runs]), mib(median([r["grown"] for r in runs])),
                         mib(runs[0].get("changed"))])
    print(table(["", "", "seconds", "÷ qemu", "cpu", "grown", "changed"], rows))


def run(setup, args):
    common.need("nbdkit", "qemu-img", "qemu-nbd")
    runs = args.runs or 3
    size, data, changed = args.size * GIB, args.data * MIB, args.changed.split(",")
    names, rate = [n for n in args.systems.split(",") if n], args.rate
    guests = [n for n in args.guests.split(",") if n]
    if setup.smoke:
        runs, size, data, changed, guests = 1, 64 * MIB, 16 * MIB, ["1"], guests[:1]
    for name in list(names):
        missing = [p for p in systems.SYSTEMS[name].needs if not shutil.which(p)]
        if missing:
            common.say(f"{name}: left out: {', '.join(missing)} is not installed")
            names.remove(name)
    disk = Disk(setup, size, data)
    rng = random.Random(1)
    results = []
    for n in range(runs):
        results.append({})
        for name in common.turned(names, n) if names else []:
            results[-1][name] = one_system(setup, disk, name, changed, PIECES[args.piece], rng)
            common.say(f"{size_text(size)}, {name}: " + ", ".join(
                f"{step} {r['seconds']:.2f} s" for step, r in results[-1][name].items()))
    if names:
        tell(results, names, ["full", *changed, "restore"])
    beside = {}
    if guests:
        load_guest.check()
        for name in guests:
            beside[name] = beside_guest(setup, disk, name, rate, args.limit * MIB,
                                        1 if setup.smoke else 5)
        print()
        print(table(["full, beside a guest", "seconds", "p99 before, ms", "during", "÷ before",
                     "longest"],
                    [[name, b["seconds"], b["before"]["p99-ms"], b["during"]["p99-ms"],
                      times(b["during"]["p99-ms"], b["before"]["p99-ms"]), b["during"]["max-ms"]]
                     for name, b in beside.items()]))
    os.unlink(disk.path)
    pauses = three_disks(setup, 64 * MIB, rate) if guests and not setup.smoke else []
    if pauses:
        print(f"\npause of three disks, ms: median {median(pauses):.2f}, longest"
              f" {max(pauses):.2f} of {len(pauses)}")
    return {"rounds": results, "guests": beside, "pauses-ms": pauses}
