# SPDX-License-Identifier: LGPL-2.1-or-later
"""Long lines: a guest writes 4 KiB at random places, while its disk is mirrored through a relay
(bench/relay.c) that adds a round trip and has a bandwidth limit.  The disk, the relay, the
destination and the guest are the same for all systems, which run one after the other.

  ready s   from the start of mirroring until it is ready
  sent      bytes that the destination wrote until the hand-over was done, divided by the disk's
            size
  pause ms  nbdmirror: how long writes were held, as it tells; QEMU: the longest time without a
            completed guest write while the job was completed
  p99 ms    of the guest's write latency, before / while mirroring until ready

Guest "idle" is a disk that nobody writes to: nbdcopy and `nbdmirror copy` of the same file, beside
"bulk", which is one stream of bytes of the same length through a relay of the same kind.

Each connection's queue holds what is on the line twice, and 1 MiB.  A run that is not ready after
--patience seconds, beside the time that the line needs for three times the disk, is "never".
"""

import os
import time

import common
import load
import load_guest
import load_systems
import qmp
from common import MIB, Run, median, ready_text, table, turned

DEST_THREADS = "64"  # of the destination's server, for each connection
SMALL_LIMIT, SMALL_PART = 10, 4  # on a line as thin as that the disk is a quarter


def add_options(parser):
    parser.add_argument("--round-trips", default="1,10,50,100", metavar="LIST",
                        help="in ms (%(default)s)")
    parser.add_argument("--limits", default="none,100,10", metavar="LIST",
                        help="of the line, in MiB/s, or none (%(default)s)")
    parser.add_argument("--rates", default="idle,200,1000,4000", metavar="LIST",
                        help="guest writes a second, or idle (%(default)s)")
    parser.add_argument("--systems", default=",".join(load_systems.SYSTEMS), metavar="LIST",
                        help="(%(default)s)")
    parser.add_argument("--size", type=int, default=256, metavar="MIB",
                        help="of the disk (%(default)s); a quarter of it on a line of at most"
                             f" {SMALL_LIMIT} MiB/s")
    parser.add_argument("--quick", action="store_true",
                        help="ten minutes: the rows that the project's goals are about")
    parser.add_argument("--patience", type=float, default=15, metavar="S",
                        help="when a run is given up, see above (%(default)s)")


class Case:
    """A line and a guest.  RATE: writes a second; None: idle.  LIMIT: MiB/s; 0: none."""

    def __init__(self, round_trip, limit, rate, systems, size):
        self.round_trip, self.limit, self.rate, self.systems = round_trip, limit, rate, systems
        self.size = size // SMALL_PART if 0 < limit <= SMALL_LIMIT else size

    def text(self):
        limit = f"{self.limit:g} MiB/s" if self.limit else "no limit"
        return f"{self.round_trip:g} ms, {limit}, " + (f"{self.rate}/s" if self.rate else "idle")

    def relay_options(self):
        on_line = self.limit * MIB * self.round_trip / 1000
        return ["--delay", str(self.round_trip / 2), "--rate", str(int(self.limit * MIB)),
                "--buffer", str(int(3 * on_line + MIB) if self.limit else 64 * MIB)]

    def patience(self, args):
        return args.patience + (3 * self.size / (self.limit * MIB) if self.limit else 0)


def cases_of(args):
    systems = args.systems.split(",")
    unknown = [s for s in systems if s not in load_systems.SYSTEMS]
    if unknown:
        raise SystemExit(f"bench/run line: no such system: {', '.join(unknown)}")
    rows = [(float(t), 0.0 if limit == "none" else float(limit),
             None if rate == "idle" else int(rate))
            for t in args.round_trips.split(",") for limit in args.limits.split(",")
            for rate in args.rates.split(",")]
    if args.quick:
        rows = [(50, 0, None), (0.1, 0, 4000), (50, 0, 200), (50, 0, 1000), (50, 0, 4000),
                (100, 0, 4000), (50, 100, 4000), (50, 10, 1000)]
    return [Case(*row, systems, args.size * MIB) for row in rows]


# ---- the line --------------------------------------------------------------------------

def relay_program(setup):
    path = os.path.join(setup.builddir, "bench/relay")
    if not os.path.exists(path):
        raise common.Unavailable(f"{path} is not built: make bench/relay")
    return path


def start_relay(setup, case, dest):
    sock = os.path.join(setup.tmp, "line.sock")
    return common.Server(setup, [relay_program(setup), "--listen", sock, "--connect", dest.sock,
                                 *case.relay_options()], sock)


def ceiling(setup, case, seconds):
    """Bytes a second of one stream through a relay of this kind."""
    return float(Run([relay_program(setup), "--ceiling", str(seconds),
                      *case.relay_options()]).output)


def start_destination(setup, size):
    path = os.path.join(setup.shm, "dest.img")
    if os.path.exists(path):
        os.unlink(path)
    with open(path, "wb") as f:
        f.truncate(size)
    return common.nbdkit(setup, "dest", "file", path, options=["-t", DEST_THREADS])


# ---- one run ---------------------------------------------------------------------------

def copy_idle(setup, case, name, source):
    if name == "bulk":
        rate = ceiling(setup, case, 0.3 if setup.smoke else 2)
        return {"ready-s": case.size / rate + case.round_trip / 1000, "sent": 1.0}
    with start_destination(setup, case.size) as dest, start_relay(setup, case, dest) as line:
        base = load.written(dest)
        tool = ["nbdcopy", "--flush"] if name == "nbdcopy" else [setup.nbdmirror, "copy"]
        run = Run([*tool, source, line.uri])
        return {"ready-s": run.seconds, "sent": (load.written(dest) - base) / case.size}


def wait_ready(system, start, limit_s):
    """Seconds until the job was ready; None: it was not."""
    while True:
        rest = start + limit_s - time.time()
        e = system.qmp.event(["BLOCK_JOB_READY", "BLOCK_JOB_COMPLETED"], min(1.0, max(0.0, rest)))
        if e and e["event"] == "BLOCK_JOB_READY":
            return qmp.seconds(e) - start
        if e:
            raise load_systems.Ended(f"the job ended: {e['data']}")
        system.left()  # it tells if the worker has ended
        if rest <= 0:
            return None


def hand_over(system, dest, base, r, size):
    def sample():
        r["sent"] = (load.written(dest) - base) / size

    handed = system.hand_over(sample)
    time.sleep(0.2)
    return handed


def mirror(setup, args, case, name, source, seed):
    r = {"ready-s": None, "pause-ms": None}
    guest = None
    before_s = 1.0 if setup.smoke else 2.5
    with start_destination(setup, case.size) as dest, start_relay(setup, case, dest) as line:
        system = load_systems.start(setup, name, source, 0)
        try:
            guest = load_guest.Guest(setup, system.uri, case.size, case.rate, "uniform", 16, seed)
            load_guest.wait_for(before_s + load_guest.SETTLE_S, guest)
            base, start, handed = load.written(dest), time.time(), None
            try:
                system.begin(line, 0)
                r["ready-s"] = wait_ready(system, start, case.patience(args))
            except load_systems.Ended as e:
                r["reason"] = str(e)
            end = time.time() if r["ready-s"] is None else start + r["ready-s"]
            r["sent"] = (load.written(dest) - base) / case.size
            r["told"] = system.told()
            if r["ready-s"] is not None:
                handed = hand_over(system, dest, base, r, case.size)
            log = guest.stop()
        finally:
            if guest:
                guest.kill()
            system.close()
    r["before"], r["during"] = log.figures(log.start(), start), log.figures(start, end)
    if handed:
        gaps = [log.gap(*span) for span in handed["spans"]]
        r["pause-ms"] = handed.get("committed-ms", gaps[0] if gaps else None)
        r["refused"] = handed["refused"]
    return r


# ---- all runs --------------------------------------------------------------------------

def contestants(case, smoke):
    if case.rate is not None:
        return case.systems
    return ["bulk", "copy"] if smoke else ["bulk", "copy", "nbdcopy"]


def one(setup, args, case, name, source, n):
    common.make_warm(source)
    if case.rate is None:
        r = copy_idle(setup, case, name, source)
    else:
        r = mirror(setup, args, case, name, source, 1000 + n)
    if setup.verbose:
        common.say(f"{case.text()}: {name}: {r}")
    return r


def row(case, name, runs):
    def of(key):
        return median([r.get(key) for r in runs])

    def p99(when):
        v = median([r[when]["p99-ms"] for r in runs if when in r])
        return "-" if v is None else f"{v:.2f}"

    idle = case.rate is None
    return [f"{case.round_trip:g}", f"{case.limit:g}" if case.limit else "none",
            "idle" if idle else case.rate, case.size // MIB,
            name if idle else load_systems.title(name),
            ready_text([r["ready-s"] for r in runs]), of("sent"), of("pause-ms"),
            None if idle else f"{p99('before')} / {p99('during')}"]


HEADINGS = ["round trip ms", "MiB/s", "guest/s", "disk MiB", "system", "ready s", "sent",
            "pause ms", "p99 ms"]


def available(cases):
    """Without what is not installed."""
    try:
        load_systems.check_qemu()
    except common.Unavailable as e:
        common.say(f"only nbdmirror: {e}")
        for case in cases:
            case.systems = [s for s in case.systems if not s.startswith("qemu")]
    return cases


def run(setup, args):
    load_guest.check()
    common.need("nbdkit", "nbdcopy")
    cases = cases_of(args)
    if setup.smoke:
        args.patience = 5
        cases = [Case(10, 0, None, [], 8 * MIB), Case(10, 0, 500, ["none"], 8 * MIB)]
    cases = available(cases)
    source = os.path.join(setup.disks, "source.img")
    figures = {}
    for n in range(args.runs or 1):
        for case in cases:
            if not os.path.exists(source) or os.path.getsize(source) != case.size:
                common.make_disk(source, case.size, 0)
            for name in turned(contestants(case, setup.smoke), n):
                figures.setdefault((case, name), []).append(one(setup, args, case, name, source, n))
    print(table(HEADINGS, [row(case, name, runs) for (case, name), runs in figures.items()]))
    return [{"round-trip-ms": case.round_trip, "limit": case.limit or None, "rate": case.rate,
             "size": case.size, "system": name, "runs": runs}
            for (case, name), runs in figures.items()]
