# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a running guest feels when its disk is put onto the tracked path and taken off it again
(`nbdmirror adopt`, `give-back`), and how long a whole move with `migrate --adopt --give-back` takes
beside QEMU's own mirror flow.

The guest (QEMU without hardware acceleration, ext4) appends records and fsyncs each, and overwrites
4 KiB blocks past its page cache as fast as it can, one at a time.

  writes/s   of the guest's device, before adopt, on the path, and after give-back, in windows of
             the same length that alternate in one guest; `ratio` is the median of those of a cycle
  longest    the slowest request of the device, as QEMU counts it (it includes all waiting); of a
             window without a move, of adopt, and of give-back. `delay` is the median of what a move
             adds to the window before it
  gap        the longest time between two records as they arrive on this host
  total s, pause ms
             of a whole move, as `bench/run handoff` has them"""

import contextlib
import json
import os
import subprocess
import sys
import time

import common
import handoff
from common import MIB, median, table, turned

sys.path.append(os.path.join(common.SRCDIR, "tests/guest"))
import machine  # noqa: E402
import scene  # noqa: E402

LOAD = "-i 1 -l 1000000"
# Of the histogram, in ms: what is shown is the upper end of a request's interval.
BOUNDS = [*range(1, 20), *range(20, 100, 5), *range(100, 500, 20), *range(500, 10001, 250)]


def add_options(parser):
    parser.add_argument("--cycles", type=int, default=20, metavar="N",
                        help="of adopt and give-back (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1.5, metavar="S",
                        help="length of a window (%(default)s)")
    parser.add_argument("--size", type=int, default=256, metavar="MIB",
                        help="of the disk (%(default)s)")
    parser.add_argument("--data", type=int, default=128, metavar="MIB",
                        help="of random data in it (%(default)s)")


# ---- the guest's requests ----------------------------------------------------------------

class Window:
    """What the guest's device does from now on."""

    def __init__(self, s, vm):
        self.s, self.vm = s, vm
        row = vm.qmp("query-block")[0]
        vm.qmp("block-latency-histogram-set", id=row["qdev"],
               boundaries=[ms * 1000000 for ms in BOUNDS])
        self.count, self.start = self.stats()["wr_operations"], time.monotonic()

    def stats(self):
        return self.vm.qmp("query-blockstats")[0]["stats"]

    def end(self):
        """Writes a second, the slowest request in ms, and the longest gap between records."""
        stats, now = self.stats(), time.monotonic()
        slowest = 0
        for kind in "wr", "rd", "flush":
            bins = stats[kind + "_latency_histogram"]["bins"]
            for number, count in enumerate(bins):
                if count:
                    slowest = max(slowest, BOUNDS[min(number, len(BOUNDS) - 1)])
        return {"rate": (stats["wr_operations"] - self.count) / (now - self.start),
                "slowest": slowest, "gap": self.s.story.largest_gap(since=self.start) * 1000}


def quiet_window(s, vm, seconds):
    window = Window(s, vm)
    time.sleep(seconds)
    return window.end()


def move_window(s, vm, seconds, *words):
    """A command, and some time after it, together as long as a window without one."""
    window = Window(s, vm)
    started = time.monotonic()
    s.nbdmirror(*words)
    time.sleep(max(0.2, seconds - (time.monotonic() - started)))
    return window.end()


def cycles(s, args):
    disk = s.make_disk("a.img", args.size * MIB, args.data * MIB)
    common.make_warm(disk)
    vm = s.vm("a", [handoff.file_node(disk)], recorder=LOAD)
    handoff.settle(s)
    sockets = s.path("s.nbd"), s.path("s.control")
    results = []
    for _ in range(args.cycles):
        result = {"before": quiet_window(s, vm, args.seconds)}
        result["adopt"] = move_window(s, vm, args.seconds, "adopt", "--qmp", vm.qmp_path,
                                      "--socket", sockets[0], "--control", sockets[1])
        result["on"] = quiet_window(s, vm, args.seconds)
        result["give-back"] = move_window(s, vm, args.seconds, "give-back", "--qmp", vm.qmp_path,
                                          sockets[1])
        result["after"] = quiet_window(s, vm, args.seconds)
        results.append(result)
    vm.shut_down()
    s.check_story()
    s.check_clean(disk)
    s.check_records(s.story.last, disk, blocks=True)
    s.forget()
    return results


# ---- a whole move ------------------------------------------------------------------------

def adopted(s, disk, empty, case):
    """Both guests have their disk as a local file, before and after, as in QEMU's flow."""
    dest = s.path("r.sock")
    receive = s.spawn("receive", [s.nbdmirror_path, "receive", empty, "--size",
                                  str(os.path.getsize(empty)), "--overwrite", "--socket", dest],
                      stdout=subprocess.PIPE)
    uri = json.loads(receive.stdout.readline())["uri"]
    a = s.vm("a", [handoff.file_node(disk)], recorder=f"-i 1 -l {case['rate']}")
    b = s.vm("b", [dest], incoming=True)
    handoff.settle(s)
    start = time.monotonic()
    s.nbdmirror("migrate", "--adopt=" + s.path("adopted"), "--give-back", "--quit-source",
                "--source-qmp", a.qmp_path, "--dest-qmp", b.qmp_path,
                "--memory-uri", "unix:" + s.path("memory"), "--memory-bandwidth", "1G",
                "--disk", f"vd0={uri},image={empty}",
                "--report", s.path("report.json"), "--log", s.path("events.log"))
    total = time.monotonic() - start
    with open(s.path("report.json")) as f:
        report = json.load(f)
    with open(s.path("events.log")) as f:
        phases = {e["after"]: e for e in map(json.loads, f) if e["event"] == "phase"}
    # The guest feels adopt and give-back, too.
    return {"total_s": total, "memory_from": start,
            "disk_ms": phases["hold"]["took-ms"] + phases["commit"]["took-ms"],
            "sent": report["disks"][0]["sent-bytes"],
            "stop_ms": report["pause-ms"], "phases": report["phases-ms"]}, b


def moves(setup, s, args):
    systems, results = {"nbdmirror": adopted, "qemu": handoff.qemu}, []
    handoff.SYSTEMS.update(systems)
    for n in range(args.runs or 5):
        for system in turned(list(systems), n):
            result = handoff.one(setup, s, system, handoff.CASES["light"], args)
            result.update(system=system, round=n)
            results.append(result)
            if args.verbose:
                common.say(f"{system}: total {result['total_s']:.2f} s, "
                           f"pause {result['pause_ms']:.0f} ms")
    return results


# ---- both --------------------------------------------------------------------------------

def run(setup, args):
    common.need(machine.QEMU, "mke2fs", "debugfs")
    if args.smoke:
        args.size, args.data, args.cycles, args.seconds = 64, 8, 1, 0.3
    os.environ["builddir"] = setup.builddir
    try:
        s = scene.Scene(setup.disks)
        s.boot = machine.Boot(s.tmp)
    except machine.Unavailable as e:
        raise common.Unavailable(str(e)) from e
    with contextlib.closing(s):
        felt = cycles(s, args)
        show_cycles(felt)
        moved = [] if args.smoke else moves(setup, s, args)
        if moved:
            show_moves(moved, args)
    return [{"cycle": n, **row} for n, row in enumerate(felt)] + moved


def show_cycles(results):
    def of(window, key):
        return median([r[window][key] for r in results])

    def ratio(window):
        return median([r[window]["rate"] / r["before"]["rate"] for r in results])

    rows = [[name, of(window, "rate"), ratio(window), of(window, "slowest"), of(window, "gap")]
            for name, window in (("before", "before"), ("on the path", "on"), ("after", "after"))]
    print(f"{len(results)} cycles")
    print(table(["", "writes/s", "ratio", "longest ms", "gap ms"], rows))
    rows = []
    for window, earlier in ("adopt", "before"), ("give-back", "on"):
        delays = [r[window]["slowest"] - r[earlier]["slowest"] for r in results]
        rows.append([window, of(window, "slowest"), median(delays), max(delays),
                     of(window, "gap"), max(r[window]["gap"] for r in results)])
    print(table(["", "longest ms", "delay ms", "most", "gap ms", "most"], rows))


def show_moves(results, args):
    rows = []
    for system in "nbdmirror", "qemu":
        runs = [r for r in results if r["system"] == system]
        pauses = sorted(r["pause_ms"] for r in runs)
        rows.append([system, median([r["total_s"] for r in runs]), median(pauses), pauses[0],
                     pauses[-1], median([r["disk_ms"] for r in runs]),
                     median([r["sent"] for r in runs]) / (args.size * MIB)])
    print(f"whole moves: {args.size} MiB, {args.data} MiB of data in it; "
          f"{len(results) // 2} rounds")
    print(table(["", "total s", "pause ms", "least", "most", "disk ms", "sent"], rows))
