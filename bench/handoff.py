# SPDX-License-Identifier: LGPL-2.1-or-later
"""A whole guest moves: memory and disk, by QEMU's own NBD mirror flow (driven over QMP as libvirt
does it for --copy-storage-all) and by `nbdmirror migrate`.  The same guest, disk and load for both,
one after the other, in turns.

The guest (QEMU without hardware acceleration,
           ext4) appends records, fsyncs each, and tells it on its serial line,
while it also overwrites 4 KiB blocks at random.

  total s    from the first command until the guest runs at the destination
  pause ms   what the guest's user notices: the largest gap between records as they arrive on this
             host, from the start of memory migration on.  The guest's own clock stands still
             meanwhile
  disk ms    the disk's share of it: QEMU's flow, from block-job-cancel until the job is completed;
             nbdmirror, from holding until all disks are prepared, and from the commit until it is
             durable
  sent       bytes of the disk that were sent, of its size

Both flows end with the destination's records checked: a run that loses one is an error, not a
figure."""

import contextlib
import json
import os
import subprocess
import sys
import time

import common
from common import MIB, median, table, turned

sys.path.append(os.path.join(common.SRCDIR, "tests/guest"))
import machine  # noqa: E402
import migration  # noqa: E402
import scene  # noqa: E402

CASES = {"light": {"rate": 200, "cap": 0}, "capped": {"rate": 200, "cap": 100 * MIB}}
SETTLE_S = 1.0


def add_options(parser):
    parser.add_argument("--systems", default="nbdmirror,qemu", metavar="LIST", help="(%(default)s)")
    parser.add_argument("--cases", default="light,capped", metavar="LIST",
                        help="light: no limit; capped: 100 MiB/s for the disk (%(default)s)")
    parser.add_argument("--size", type=int, default=256, metavar="MIB",
                        help="of the disk (%(default)s)")
    parser.add_argument("--data", type=int, default=128, metavar="MIB",
                        help="of random data in it (%(default)s)")


# ---- QEMU's own flow -------------------------------------------------------------------

def file_node(path):
    return {"driver": "raw", "file": {"driver": "file", "filename": path}}


def qemu(s, disk, empty, case):
    """Both QEMUs have their disk as a local file; the destination's exports it for the mirror."""
    a = s.vm("a", [file_node(disk)], recorder=f"-i 1 -l {case['rate']}")
    b = s.vm("b", [file_node(empty)], incoming=True)
    settle(s)
    start = time.monotonic()
    migration.prepare(a, b, "unix:" + s.path("memory"))
    b.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": s.path("nbd")}})
    b.qmp("block-export-add", **{"type": "nbd", "id": "export", "node-name": "disk0",
                                 "name": "disk0",
                                 "writable": True})
    a.qmp("blockdev-add", **machine.nbd_node("target", s.path("nbd"), export="disk0"))
    a.qmp("blockdev-mirror", **{"job-id": "mirror", "device": "disk0", "target": "target",
                                "sync": "full",
                                "speed": case["cap"], "auto-dismiss": False})
    wait_event(a, "BLOCK_JOB_READY")
    memory = time.monotonic()
    a.qmp("migrate", uri="unix:" + s.path("memory"))
    wait_status(a, "pre-switchover")
    asked = time.monotonic()
    a.qmp("block-job-cancel", device="mirror")
    # A mirror that was ready and is then cancelled has succeeded: it is completed.
    wait_event(a, "BLOCK_JOB_COMPLETED")
    disk_ms = (time.monotonic() - asked) * 1000
    sent = a.qmp("query-jobs")[0]["current-progress"]
    a.qmp("job-dismiss", id="mirror")
    a.qmp("migrate-continue", state="pre-switchover")
    wait_status(a, "completed")
    b.qmp("block-export-del", id="export", mode="hard")
    b.qmp("nbd-server-stop")
    b.qmp("cont")
    return {"total_s": time.monotonic() - start, "memory_from": memory, "disk_ms": disk_ms,
            "sent": sent}, b


def wait_event(vm, name, seconds=120):
    if vm.qmp.wait_event(seconds, lambda e: e["event"] == name) is None:
        raise RuntimeError(f"QEMU {vm.name}: no {name} in {seconds} s")


def wait_status(vm, status, seconds=120):
    def accept(event):
        if event["event"] != "MIGRATION":
            return False
        if event["data"]["status"] == "failed":
            raise RuntimeError("memory migration failed")
        return event["data"]["status"] == status
    if vm.qmp.wait_event(seconds, accept) is None:
        raise RuntimeError(f"QEMU {vm.name}: migration is not {status} in {seconds} s")


# ---- nbdmirror -------------------------------------------------------------------------

def nbdmirror(s, disk, empty, case):
    src, dst = s.serve("src", disk), s.plain("dst", empty)
    a = s.vm("a", [src], recorder=f"-i 1 -l {case['rate']}")
    b = s.vm("b", [dst], incoming=True)
    settle(s)
    start = time.monotonic()
    words = [s.nbdmirror_path, "migrate", "--source-qmp", a.qmp_path, "--dest-qmp", b.qmp_path,
             "--memory-uri",
             "unix:" + s.path("memory"), "--memory-bandwidth", "1G",
             "--disk", f"{src.control}={dst.uri}",
             "--report", s.path("report.json"), "--log", s.path("events.log")]
    if case["cap"]:
        words += ["--bandwidth", str(case["cap"])]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=120)
    total = time.monotonic() - start
    if done.returncode != 0:
        raise RuntimeError(f"nbdmirror migrate: exit status {done.returncode}\n{done.stderr}")
    with open(s.path("report.json")) as f:
        report = json.load(f)
    with open(s.path("events.log")) as f:
        phases = {e["after"]: e for e in map(json.loads, f) if e["event"] == "phase"}
    # Phases are logged when they end: the memory's began when the mirror's ended.  The log has the
    # time of day.
    memory_from = phases["mirror"]["time"] - time.time() + time.monotonic()
    disk_ms = phases["hold"]["took-ms"] + phases["commit"]["took-ms"]
    return {"total_s": total, "memory_from": memory_from, "disk_ms": disk_ms,
            "sent": report["disks"][0]["sent-bytes"], "report": report,
            "phases": {name: e["took-ms"] for name, e in phases.items()}}, b


# ---- runs ------------------------------------------------------------------------------

def settle(s):
    """The guest has written its blocks, and a second's worth of records."""
    s.story.wait_for_line("LOADED")
    time.sleep(SETTLE_S)


SYSTEMS = {"nbdmirror": nbdmirror, "qemu": qemu}


def one(setup, s, system, case, args):
    disk = s.make_disk("a.img", args.size * MIB, args.data * MIB)
    empty = s.empty_disk("b.img", disk)
    common.make_warm(disk)
    try:
        result, b = SYSTEMS[system](s, disk, empty, case)
        time.sleep(SETTLE_S)
        s.story.wait_for_more(20, machine="b")
        result["pause_ms"] = s.story.largest_gap(since=result.pop("memory_from", 0.0)) * 1000
        b.shut_down()
        s.check_story()
        s.check_clean(empty)
        s.check_records(s.story.last, empty, blocks=True)
    except BaseException:
        s.show_logs()
        raise
    finally:
        s.forget()
        for name in os.listdir(s.disks):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(s.disks, name))
    return result


def run(setup, args):
    common.need(machine.QEMU, "mke2fs", "debugfs")
    systems, cases = args.systems.split(","), args.cases.split(",")
    rounds = args.runs or (1 if args.smoke else 5)
    if args.smoke:
        args.size, args.data, cases = 64, 8, cases[:1]
    os.environ["builddir"] = setup.builddir
    results = []
    try:
        s = scene.Scene(setup.disks)
        s.boot = machine.Boot(s.tmp)
    except machine.Unavailable as e:
        raise common.Unavailable(str(e)) from e
    try:
        for n in range(rounds):
            for case in cases:
                for system in turned(systems, n):
                    result = one(setup, s, system, CASES[case], args)
                    result.update(case=case, system=system, round=n)
                    results.append(result)
                    if args.verbose:
                        common.say(f"{case} {system}: " + ", ".join(
                            f"{k} {v:.2f}" for k, v in result.items() if isinstance(v, float)))
    finally:
        s.close()
    show(results, systems, cases, args)
    return results


def show(results, systems, cases, args):
    rows = []
    for case in cases:
        for system in systems:
            runs = [r for r in results if r["case"] == case and r["system"] == system]
            def of(key):
                return [r.get(key) for r in runs]
            sent = median(of("sent"))
            pauses = sorted(p for p in of("pause_ms") if p is not None)
            rows.append([f"{case} {system}", median(of("total_s")), median(of("pause_ms")),
                         pauses[0], pauses[-1], median(of("disk_ms")),
                         sent / (args.size * MIB) if sent is not None else None])
    print(f"{args.size} MiB, {args.data} MiB of data in it; {len(results) // len(rows)} rounds")
    print(table(["", "total s", "pause ms", "least", "most", "disk ms", "sent"], rows))
