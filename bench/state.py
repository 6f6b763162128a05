# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a state file costs a guest: fio (4 KiB writes) against nbdkit with the filter, without a
state file and with one in which a checkpoint records, in turns; IOPS, the latency that one write in
a hundred exceeds, and how many syncs of the state file there were for a thousand writes.

  hot      random writes within 64 MiB, which are 16 extents, all of them hot after a moment
  16 GiB   random writes all over a sparse disk of 16 GiB: the extents are cold at the beginning
  1 TiB    the same over 1 TiB: almost each write is the first one in its extent
  in order sequential writes

Writers are connections, with one write in flight each.  With --sync-ms each sync of the server
takes so much longer, as on a slow device.  First touches (1 TiB) have rows for more writers."""

import json
import os
import shlex
import shutil
import struct
import subprocess

import common
from common import GIB, MIB, TIB, Run, median, ratio, table, turned

PATTERNS = {"hot": ("randwrite", TIB, 64 * MIB), "16 GiB": ("randwrite", 16 * GIB, 16 * GIB),
            "1 TiB": ("randwrite", TIB, TIB), "in order": ("write", 16 * GIB, 16 * GIB)}


def add_options(parser):
    parser.add_argument("--patterns", default=",".join(PATTERNS), metavar="LIST")
    parser.add_argument("--writers", default="1,4,16,32,64", metavar="LIST",
                        help="more than 16 with '1 TiB' only (1,4,16,32,64)")
    parser.add_argument("--sync-ms", default="0,5", metavar="LIST",
                        help="what each sync takes more (0,5)")
    parser.add_argument("--seconds", type=float, default=2, help="of each run (2)")


def preload(setup):
    library = os.path.join(setup.tmp, "slow-sync.so")
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not shutil.which(compiler[0]):
        raise common.Unavailable(f"{compiler[0]} is not installed")
    subprocess.run([*compiler, "-shared", "-fPIC", "-O2", "-w", "-D_GNU_SOURCE",
                    "-I" + setup.builddir, "-o", library,
                    os.path.join(common.SRCDIR, "bench/slow-sync.c"), "-ldl"], check=True)
    return library


def measure(setup, library, way, pattern, writers, sync_ms, seconds):
    """One run on a server and a disk of its own."""
    rw, disk_size, size = PATTERNS[pattern]
    disk, state = (os.path.join(setup.disks, name) for name in ("disk.img", "disk.state"))
    count, control = (os.path.join(setup.tmp, name) for name in ("syncs", "state.control"))
    for path in (disk, state, count):
        with open(path, "wb") as f:
            f.truncate({disk: disk_size, state: 0, count: 4096}[path])
    os.unlink(state)
    argv = ["env", "LD_PRELOAD=" + library, f"SYNC_MS={sync_ms}", "SYNC_COUNT=" + count,
            "SYNC_FILE=" + state, "nbdkit", "-f", "-U", os.path.join(setup.tmp, "state.sock"),
            "--filter=" + setup.filter, "file", disk, "mirror-control=" + control,
            "mirror-direct=" + disk]
    if way == "state":
        argv += ["mirror-state=" + state, "mirror-state-volatile=yes"]
    with common.Server(setup, argv, os.path.join(setup.tmp, "state.sock")) as server:
        if way == "state":
            subprocess.run(["nbdinfo", "--size", server.uri], check=True, capture_output=True)
            subprocess.run([setup.nbdmirror, "checkpoint", "add", control, "bench"], check=True,
                           stdout=subprocess.DEVNULL)
        before = syncs(count)
        run = Run(["fio", "--output-format=json", "--name=guest", "--ioengine=nbd",
                   "--uri=" + server.uri, "--rw=" + rw, "--bs=4k", "--iodepth=1",
                   f"--numjobs={writers}", "--group_reporting", f"--size={size}",
                   f"--offset_increment={size // writers if rw == 'write' else 0}",
                   "--norandommap", "--randrepeat=0", "--time_based", f"--runtime={seconds}"])
        after = syncs(count)
    write = json.loads(run.output[run.output.index("{"):])["jobs"][0]["write"]
    return {"iops": write["iops"], "p99-us": write["clat_ns"]["percentile"]["99.000000"] / 1000,
            "syncs": 1000 * (after - before) / max(1, write["total_ios"])}


def syncs(path):
    with open(path, "rb") as f:
        return struct.unpack("=Q", f.read(8))[0]


def run(setup, args):
    common.need("nbdkit", "nbdinfo", "fio")
    runs, seconds = args.runs or 5, args.seconds
    patterns, writers = args.patterns.split(","), args.writers.split(",")
    if setup.smoke:
        runs, seconds, patterns, writers = 1, 0.3, ["hot"], ["4"]
    for pattern in patterns:
        if pattern not in PATTERNS:
            raise common.Unavailable(f"there is no pattern '{pattern}'")
    library, results, rows = preload(setup), [], []
    for sync_ms in map(float, args.sync_ms.split(",")):
        for pattern in patterns:
            for w in map(int, writers):
                if w > 16 and pattern != "1 TiB":
                    continue
                figures = {"plain": [], "state": []}
                for n in range(runs):
                    for way in turned(list(figures), n):
                        figures[way].append(measure(setup, library, way, pattern, w, sync_ms,
                                                    seconds))
                plain, state = ({key: [f[key] for f in figures[way]] for key in figures[way][0]}
                                for way in ("plain", "state"))
                results.append({"sync-ms": sync_ms, "pattern": pattern, "writers": w,
                                "runs": figures})
                rows.append([f"{sync_ms:g}", pattern, w, round(median(plain["iops"])),
                             round(median(state["iops"])),
                             f"{ratio(state['iops'], plain['iops']):.3f}",
                             round(median(plain["p99-us"])), round(median(state["p99-us"])),
                             f"{median(state['syncs']):.1f}"])
                if setup.verbose:
                    common.say(str(rows[-1]))
    print(table(["sync ms", "pattern", "writers", "IOPS without", "IOPS with", "ratio",
                 "p99 us without", "p99 us with", "syncs/1000"], rows))
    return results
