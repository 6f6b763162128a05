# SPDX-License-Identifier: LGPL-2.1-or-later
"""Mirroring under write load: a guest writes 4 KiB at random places, at a given rate or as fast as
it can, while nbdmirror (with a policy) or qemu-storage-daemon (blockdev-mirror,
                                                             copy-mode background or
write-blocking) mirrors its disk.  The same disk, cap, destination and fio job for all; one after
the other.

  ready s     from the start of mirroring until it is ready
  x ideal     that, divided by the time that the cap allows at best (disk / cap)
  sent        bytes that reached the destination until the first hand-over was done, divided by the
              disk's size
  gap ms      hand-over: the longest time without a completed guest write (at a slow rate it is at
              least the time between two writes)
  held ms     hand-over: how long writes were held, as nbdmirror tells: the first time, at once
              when it was ready; median and longest of the times after that
  step ms     hand-over: from asking for it until it is done
  kept        the guest's IOPS while mirroring, in percent of those before
  p50, p99, max   of the guest's write latency in ms, before / while mirroring until ready
  delay ms    the longest that nbdmirror let a write wait on purpose (policies sync and throttle)

A run that is not ready after --give-up times the ideal time (without a cap: --patience) is "never".
"""

import json
import os
import shutil
import time

import common
import load_guest
import load_plot
import load_systems
import qmp
from common import GIB, MIB, median, ready_text, table, turned

RATES = "200,800,2000,4000,16000,max"
SAMPLE_S = 0.1


def add_options(parser):
    parser.add_argument("--rates", default=RATES, metavar="LIST",
                        help="guest writes a second, max: as many as it can (%(default)s)")
    parser.add_argument("--caps", default="100,none", metavar="LIST",
                        help="limits in MiB/s, or none (%(default)s)")
    parser.add_argument("--patterns", default="uniform,zipf,hotspot", metavar="LIST",
                        help="where the guest writes (%(default)s): zipf 1.1;"
                             " hotspot: 90%% to 5%% of the disk")
    parser.add_argument("--policies", default="none,sync,throttle", metavar="LIST",
                        help="of nbdmirror (%(default)s)")
    parser.add_argument("--systems", default="nbdmirror,qemu-background,qemu-write-blocking",
                        metavar="LIST", help="(%(default)s)")
    parser.add_argument("--size", type=int, default=1024, metavar="MIB",
                        help="of the disk (%(default)s)")
    parser.add_argument("--quick", action="store_true",
                        help="a preset, about ten minutes: what the project's own goals are about")
    parser.add_argument("--long", action="store_true",
                        help="the cases of --quick with 8 GiB: an hour or so")
    parser.add_argument("--before", type=float, default=3, metavar="S",
                        help="seconds of guest writes before mirroring starts (%(default)s)")
    parser.add_argument("--holds", type=int, default=10, metavar="N",
                        help="measure nbdmirror's pause N times more each run (%(default)s)")
    parser.add_argument("--iodepth", type=int, default=16, help="the guest's (%(default)s)")
    parser.add_argument("--cache", choices=("cold", "warm"), default="cold",
                        help="the source in the page cache at the start (%(default)s)")
    parser.add_argument("--idle-dest", action="store_true",
                        help="the destination's server takes only processor time that nobody else"
                             " wants (SCHED_IDLE), somewhat as if it were on another host")
    parser.add_argument("--give-up", type=float, metavar="N",
                        help="with a cap: after N times the disk / cap (3; --quick, --long: 2.2)")
    parser.add_argument("--patience", type=float, default=30, metavar="S",
                        help="without a cap: give up after so long (%(default)s)")
    parser.add_argument("--replot", metavar="FILE",
                        help="measure nothing: table and plots of these results")
    parser.add_argument("--no-plot", action="store_true", help="no SVG beside the results")


# ---- what to run -----------------------------------------------------------------------

class Case:
    """What is the same for all systems that are compared with each other."""

    def __init__(self, rate, cap, pattern, cache, systems, holds):
        self.rate, self.cap, self.pattern, self.cache = rate, cap, pattern, cache
        self.systems, self.holds = systems, holds

    def text(self):
        rate = f"{self.rate}/s" if self.rate else "unthrottled"
        cap = f"cap {self.cap} MiB/s" if self.cap else "no cap"
        return f"{rate} {self.pattern}, {cap}, {self.cache}"


def all_systems(args, policies):
    systems = []
    for name in args.systems.split(","):
        systems += policies if name == "nbdmirror" else [name]
    unknown = [s for s in systems if s not in load_systems.SYSTEMS]
    if unknown:
        raise SystemExit(f"bench/run load: no such system or policy: {', '.join(unknown)}")
    return systems


def quick_cases(args):
    """The cases that goals are set for."""
    slow, fast = all_systems(args, ["none"]), all_systems(args, ["sync", "throttle"])
    cases = [Case(rate, 100, "uniform", "cold", slow, 30 if rate == 2000 else args.holds)
             for rate in (200, 800, 2000, 4000)]
    cases += [Case(rate, 100, "uniform", "cold", fast, args.holds) for rate in (16000, 0)]
    # Without a cap a cold disk is read no faster than it can be, whoever reads.
    cases += [Case(rate, 0, "uniform", cache, slow, 30 if rate == 2000 else args.holds)
              for rate in (200, 2000) for cache in ("cold", "warm")]
    return cases


def cases_of(args):
    if args.quick or args.long:
        return quick_cases(args)
    systems = all_systems(args, args.policies.split(","))
    return [Case(0 if rate == "max" else int(rate), 0 if cap == "none" else int(cap), pattern,
                 args.cache,
                 systems, args.holds)
            for cap in args.caps.split(",") for pattern in args.patterns.split(",")
            for rate in args.rates.split(",")]


# ---- one run ---------------------------------------------------------------------------

def written(server):
    """Bytes that the destination wrote to its file so far: the same measure for everybody."""
    with open(f"/proc/{server.pid}/io") as f:
        for line in f:
            if line.startswith("wchar:"):
                return int(line.split()[1])
    raise common.Unavailable("this kernel has no /proc/PID/io")


def destination(setup, size, idle):
    """A new sparse file: in memory, if there is room for it."""
    where = setup.shm if shutil.disk_usage(setup.shm).free > 2 * size else setup.disks
    path = os.path.join(where, "dest.img")
    if os.path.exists(path):
        os.unlink(path)
    with open(path, "wb") as f:
        f.truncate(size)
    server = common.nbdkit(setup, "dest", "file", path)
    if idle:  # the threads of connections to come inherit it
        os.sched_setscheduler(server.pid, os.SCHED_IDLE, os.sched_param(0))
    return server


def watch(system, dest, start, base, limit_s):
    """Until it is ready: (seconds or None, [[seconds, MiB left, MiB sent]...])."""
    samples, next_sample = [], time.time()
    while True:
        e = system.qmp.event(["BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED"],
                             max(0.0, next_sample - time.time()))
        if e and e["event"] == "BLOCK_JOB_READY":
            return qmp.seconds(e) - start, samples
        if e:
            raise load_systems.Ended(f"the job ended: {e['data']}")
        left = system.left()
        now = time.time()
        samples.append([round(now - start, 3), left and round(left / MIB, 2),
                        round((written(dest) - base) / MIB, 2)])
        if now - start > limit_s:
            return None, samples
        next_sample = now + SAMPLE_S


def mirror(setup, args, case, name, source, size, guest_seed):
    """One run, as a dict of figures."""
    cap = case.cap * MIB
    ideal = size / cap if cap else None
    limit = (args.give_up or (2.2 if args.quick or args.long
                              else 3)) * ideal if cap else args.patience
    guest = None
    with destination(setup, size, args.idle_dest) as dest:
        system = load_systems.start(setup, name, source, case.holds)
        try:
            guest = load_guest.Guest(setup, system.uri, size, case.rate, case.pattern, args.iodepth,
                                     guest_seed)
            # fio needs some time to start: its first write counts, and it is looked up later.
            load_guest.wait_for(args.before + 1 + load_guest.SETTLE_S, guest)
            base, start = written(dest), time.time()
            r = {"system": name, "ideal-s": ideal, "ready-s": None, "reason": None}
            samples, handed = [], {"pauses-ms": [], "spans": [], "refused": []}
            cpu = system.server.cpu(), 0.0, dest.cpu()
            try:
                system.begin(dest, cap)
                r["ready-s"], samples = watch(system, dest, start, base, limit)
            except load_systems.Ended as e:
                r["reason"] = str(e)
            end = time.time() if r["ready-s"] is None else start + r["ready-s"]
            def sample():
                r["sent"] = (written(dest) - base) / size

            sample()
            r["sent-at-ready"] = r["sent"]
            if r["reason"] is None:
                r["cpu-s"] = [b - a for a, b in zip(cpu, (*system.cpu(), dest.cpu()))]
            r["told"] = system.told()
            if r["ready-s"] is not None:
                handed = system.hand_over(sample)
                time.sleep(0.2)
            log = guest.stop()
        finally:
            if guest:
                guest.kill()
            system.close()
    r.update(handed)
    r["before"], r["during"] = log.figures(log.start(), start), log.figures(start, end)
    r["kept"] = 100 * r["during"]["iops"] / r["before"]["iops"] if r["before"]["iops"] else None
    r["gaps-ms"] = [log.gap(*span) for span in r["spans"]]
    if "committed-at" in r:
        r["gaps-ms"].append(log.silence(r["committed-at"]))
    r["left-series"] = samples
    # What came before as well, as time below zero.
    r["guest-series"] = log.series(start - args.before, end + 1, 0.25)
    for point in r["guest-series"]:
        point[0] = round(point[0] - args.before, 3)
    return r


# ---- tables ----------------------------------------------------------------------------

def spread(values, digits=1):
    """The median and the largest."""
    values = [v for v in values if v is not None]
    if not values:
        return "-"
    middle = f"{median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} / {max(values):.{digits}f}"


def held(runs):
    if not any(r["pauses-ms"] for r in runs):
        return "-"
    return (spread([p for r in runs for p in r["pauses-ms"][:1]]) + "; "
            + spread([p for r in runs for p in r["pauses-ms"][1:]]))


def longest_delay(runs):
    """As the filter tells; None where no write was delayed."""
    delays = [r["told"].get("longest-write-delay-ms") for r in runs
              if r["told"].get("delayed-writes")]
    return max((d for d in delays if d is not None), default=None)


def before_and_during(runs, key):
    a, b = (median([r[when][key] for r in runs]) for when in ("before", "during"))
    return "-" if a is None or b is None else f"{a:.2f} / {b:.2f}"


def summary(case, name, runs):
    ready = [r["ready-s"] for r in runs]
    pauses = [p for r in runs for p in r["pauses-ms"]]
    gaps = [g for r in runs for g in r["gaps-ms"] if g is not None]
    return {
        "rate": case.rate or "max", "cap": case.cap or "none", "pattern": case.pattern,
        "cache": case.cache,
        "system": name,
        "runs": runs,
        "ready": sum(r is not None for r in ready), "ready-s": median(ready),
        "x-ideal": median([r["ready-s"] and r["ideal-s"] and r["ready-s"] / r["ideal-s"]
                           for r in runs]),
        "sent": median([r["sent"] for r in runs]),
        "pause-first-ms": median([p for r in runs for p in r["pauses-ms"][:1]]),
        "pause-median-ms": median(pauses), "pause-max-ms": max(pauses, default=None),
        "pauses": len(pauses), "refused": sum(len(r["refused"]) for r in runs),
        "gap-median-ms": median(gaps), "gap-max-ms": max(gaps, default=None),
        "step-ms": median([r.get("step-ms") for r in runs]),
        "kept": median([r["kept"] for r in runs]),
        "p99-ratio": median([r["during"]["p99-ms"] and r["during"]["p99-ms"] / r["before"]["p99-ms"]
                             for r in runs if r["before"]["p99-ms"]]),
    }


def row(s):
    runs = s["runs"]
    never = s["ready"] == 0
    return [
        s["rate"], s["pattern"], s["cap"], s["cache"], load_systems.title(s["system"]),
        ready_text([r["ready-s"] for r in runs]),
        s["x-ideal"], f"> {s['sent']:.2f}" if never else f"{s['sent']:.3f}",
        spread([g for r in runs for g in r["gaps-ms"]], 0), held(runs),
        spread([r.get("step-ms") for r in runs], 0), f"{s['kept']:.0f} %" if s["kept"] else None,
        before_and_during(runs, "p50-ms"), before_and_during(runs, "p99-ms"),
        before_and_during(runs, "max-ms"), longest_delay(runs),
    ]


HEADINGS = ["guest/s", "pattern", "cap", "cache", "system", "ready s", "x ideal", "sent", "gap ms",
            "held ms", "step ms", "kept", "p50 ms", "p99 ms", "max ms", "delay ms"]


def told_at_once(setup, case, r):
    if not setup.verbose:
        return
    ready = "never" if r["ready-s"] is None else f"ready after {r['ready-s']:.2f} s"
    common.say(f"{case.text()}: {load_systems.title(r['system'])}: {ready}, sent {r['sent']:.3f}, "
               f"gaps "
               f"{spread(r['gaps-ms'], 0)} ms, held {spread(r['pauses-ms'])} ms, guest kept "
               f"{r['kept'] or 0:.0f} %, p99 {r['before']['p99-ms'] or 0:.2f} -> "
               f"{r['during']['p99-ms'] or 0:.2f}, max {r['during']['max-ms'] or 0:.0f} ms"
               + "".join(f"; {x}" for x in r["refused"]) + (f"; {r['reason']}" if r["reason"]
                                                            else ""))


def show(results, output, plots=True):
    print(table(HEADINGS, [row(s) for s in results]))
    if plots:
        load_plot.plot(results, os.path.splitext(output)[0])


def run(setup, args):
    if args.replot:
        with open(args.replot) as f:
            results = json.load(f)["results"]
        show(results, args.replot)
        return None
    load_guest.check()
    common.need("nbdkit")
    runs, size = args.runs or 1, (8 * GIB if args.long else args.size * MIB)
    if setup.smoke:
        runs, size = 1, 16 * MIB
        args.before, args.holds, args.patience, args.give_up = 0.3, 1, 10, 1.5
        cases = [Case(2000, 16, "zipf", args.cache, all_systems(args, ["none"]), 1)]
    else:
        cases = cases_of(args)
    try:
        load_systems.check_qemu()
    except common.Unavailable as e:
        common.say(f"only nbdmirror: {e}")
        for case in cases:
            case.systems = [s for s in case.systems if not s.startswith("qemu")]
    source = os.path.join(setup.disks, "source.img")
    common.say(f"making a disk: {common.size_text(size)}")
    common.make_disk(source, size, 0)
    figures = {(c, name): [] for c in cases for name in c.systems}
    for n in range(runs):
        for case in cases:
            for name in turned(case.systems, n):
                (common.make_cold if case.cache == "cold" else common.make_warm)(source)
                r = mirror(setup, args, case, name, source, size, 1000 + n)
                figures[case, name].append(r)
                told_at_once(setup, case, r)
    results = [summary(case, name, r) for (case, name), r in figures.items() if r]
    show(results, setup.output, not args.no_plot)
    return results
