# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sending what was changed since a checkpoint: time and bytes against how much was changed, and
against the size of the disk, which is sparse.

  incremental  `nbdmirror mirror --sync incremental --since NAME --on-ready complete`: the hand-over
               is in the time.  The state file has the checkpoint.  1,000 blocks of the
               destination are compared before it is written to
  few          the same with --trust-destination=64, which are as many as are compared where
               `nbdmirror receive` or a backup's manifest proves where the destination stands
  qemu         qemu-storage-daemon, `blockdev-backup sync=incremental`, by a dirty bitmap with its
               own granularity
  nbdcopy      sends everything, from an nbdkit
  plain        the control, which is left out unless --systems names it: one thread reads each
               changed block from the source's file and writes it to the destination's, by pread()
               and pwrite(), with nothing between, and ends with fdatasync().  Which blocks these
               are is asked before, and what is sent is not counted

All serve the same disk over NBD, and fio makes the same changes in it: runs of --pieces bytes, all
over the disk.  All write to an nbdkit with a raw file, which is made new for each run, and stands
where the source stood before the changes.  They flush at the end.

  seconds   from asking for it to its end
  ÷ qemu    the time divided by QEMU's, within a round
  sent ÷    what the destination's nbdkit wrote to its file, divided by what was changed
  memory    of the source's server at the end of a run, beside what it has mapped, MiB

After the first run of each, its destination is compared with the source.  A case is left out if
more than --most MiB are changed: all disks lie on the same file system."""

import json
import os
import shutil
import subprocess
import time

import common
import large
import qmp
from common import GIB, MIB, TIB, Run, median, ratio, size_text, table

SIZES = {"10G": 10 * GIB, "100G": 100 * GIB, "1T": TIB, "16T": 16 * TIB - 65536}
PIECES = {"4k": 4096, "64k": 65536, "1M": MIB}


def add_options(parser):
    parser.add_argument("--sizes", default="10G,100G,1T,16T", metavar="LIST",
                        help="of " + ", ".join(SIZES))
    parser.add_argument("--changed", default="0.01,0.1,1,10", metavar="LIST",
                        help="percent of the disk (%(default)s)")
    parser.add_argument("--pieces", default="4k,1M", metavar="LIST",
                        help="of " + ", ".join(PIECES) + " (%(default)s)")
    parser.add_argument("--data", type=int, default=256, metavar="MIB",
                        help="random data at the checkpoint (%(default)s)")
    parser.add_argument("--most", type=int, default=2048, metavar="MIB", help="(%(default)s)")
    parser.add_argument("--systems", default="incremental,few,qemu,nbdcopy", metavar="LIST",
                        help="(%(default)s)")


def written_by(server):
    """Bytes that a server has written to its file."""
    with open(f"/proc/{server.pid}/io") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("wchar:"))


class System:
    """One server of a copy of the base.  The guest changes it, each block once at most.  Then it is
    copied any number of times."""

    report = None  # what the job says of the last run, where there is a report

    def __init__(self, setup, base):
        self.setup = setup
        self.disk = os.path.join(setup.disks, type(self).__name__ + ".img")
        common.call("cp", "--sparse=always", base, self.disk)

    def change(self, piece, amount, size):
        Run(["fio", "--name=guest", "--ioengine=nbd", "--uri=" + self.guest_uri, "--rw=randwrite",
             f"--bs={piece}", "--iodepth=64", f"--size={size // piece * piece}",
             f"--io_size={amount}", "--random_generator=lfsr", "--randseed=17"], 3600)

    def prepare(self):
        """Before each run; not timed."""

    def close(self):
        self.server.stop()
        os.unlink(self.disk)


class Incremental(System):
    blocks = 1000

    def __init__(self, setup, base):
        super().__init__(setup, base)
        self.state = self.disk + ".state"
        self.server = common.serve(setup, type(self).__name__, self.disk, "--state", self.state,
                                   "--", "mirror-state-volatile=yes")  # --dir may be in memory
        self.guest_uri = self.server.uri
        common.call(setup.nbdmirror, "checkpoint", "add", self.server.control, "one")

    def copy(self, dest):
        report = os.path.join(self.setup.tmp, "incremental.report")
        run = Run([self.setup.nbdmirror, "mirror", self.server.control, dest.uri, "--sync",
                   "incremental", "--since", "one", f"--trust-destination={self.blocks}",
                   "--on-ready", "complete", "--report", report], 3600)
        with open(report) as f:
            self.report = json.load(f)
        token = self.report["rollback-token"]
        common.call(self.setup.nbdmirror, "rollback", self.server.control, "--token", token,
                    "--destination-stopped")
        return run.seconds

    def close(self):
        super().close()
        os.unlink(self.state)


class Few(Incremental):
    blocks = 64


class Plain(Incremental):
    def prepare(self):
        done = subprocess.run([self.setup.nbdmirror, "dirty-map", self.server.control, "--since",
                               "one", "--json"], stdout=subprocess.PIPE, check=True)
        self.changed = [e for e in json.loads(done.stdout) if e["type"] != 0]
        self.dest = os.path.join(self.setup.disks, "dest.img")  # one_run() has made it

    def copy(self, dest):
        start = time.monotonic()
        source, target = os.open(self.disk, os.O_RDONLY), os.open(self.dest, os.O_WRONLY)
        for e in self.changed:
            for offset in range(e["offset"], e["offset"] + e["length"], MIB):
                length = min(MIB, e["offset"] + e["length"] - offset)
                os.pwrite(target, os.pread(source, length, offset), offset)
        os.fdatasync(target)
        os.close(target)
        os.close(source)
        return time.monotonic() - start


class Qemu(System):
    def __init__(self, setup, base):
        super().__init__(setup, base)
        sock, monitor = (os.path.join(setup.tmp, name) for name in ("qemu.sock", "qemu.qmp"))
        self.server = common.Server(
            setup, ["qemu-storage-daemon",
                    "--blockdev", f"driver=file,node-name=file,filename={self.disk}",
                    "--blockdev", "driver=raw,node-name=disk,file=file",
                    "--nbd-server", f"addr.type=unix,addr.path={sock}",
                    "--export", "type=nbd,id=export,node-name=disk,name=disk,writable=on",
                    "--chardev", f"socket,id=monitor,path={monitor},server=on,wait=off",
                    "--monitor", "chardev=monitor"], sock)
        self.guest_uri = f"nbd+unix:///disk?socket={sock}"
        end = time.monotonic() + 10
        while not common.listening(monitor) and time.monotonic() < end:
            time.sleep(0.01)
        self.qmp = qmp.QMP(monitor)
        self.qmp.command("block-dirty-bitmap-add", {"node": "disk", "name": "one"})

    def prepare(self):
        """The job clears the bitmap that it is given."""
        self.qmp.command("block-dirty-bitmap-add", {"node": "disk", "name": "run",
                                                    "disabled": True})
        self.qmp.command("block-dirty-bitmap-merge", {"node": "disk", "target": "run",
                                                      "bitmaps": ["one"]})

    def copy(self, dest):
        self.qmp.events.clear()
        start = time.monotonic()
        self.qmp.command("blockdev-add", {"driver": "nbd", "node-name": "dest",
                                          "server": {"type": "unix", "path": dest.sock}})
        self.qmp.command("blockdev-backup", {"job-id": "job", "device": "disk", "target": "dest",
                                             "sync": "incremental", "bitmap": "run"}, timeout=600)
        e = self.qmp.event(["BLOCK_JOB_COMPLETED"], 3600)
        if e is None or "error" in e["data"]:
            raise RuntimeError(f"blockdev-backup: {e}")
        self.qmp.command("blockdev-del", {"node-name": "dest"})
        seconds = time.monotonic() - start
        self.qmp.command("block-dirty-bitmap-remove", {"node": "disk", "name": "run"})
        return seconds

    def close(self):
        self.qmp.close()
        super().close()


class Nbdcopy(System):
    def __init__(self, setup, base):
        super().__init__(setup, base)
        self.server = common.nbdkit(setup, "nbdcopy", "file", self.disk)
        self.guest_uri = self.server.uri

    def copy(self, dest):
        return Run(["nbdcopy", "--flush", self.guest_uri, dest.uri], 3600).seconds


SYSTEMS = {"incremental": Incremental, "few": Few, "plain": Plain, "qemu": Qemu,
           "nbdcopy": Nbdcopy}
NEEDS = {"qemu": "qemu-storage-daemon", "nbdcopy": "nbdcopy"}


def one_run(setup, base, system, prove):
    """Seconds, and bytes written at the destination."""
    path = os.path.join(setup.disks, "dest.img")
    common.call("cp", "--sparse=always", base, path)
    os.sync()
    system.prepare()
    try:
        with common.nbdkit(setup, "dest", "file", path) as dest:
            before = written_by(dest)
            seconds = system.copy(dest)
            sent = written_by(dest) - before
        if prove:
            common.call("qemu-img", "compare", "-q", "-f", "raw", "-F", "raw", system.disk, path)
    finally:
        os.unlink(path)
    return {"seconds": seconds, "sent": sent, "memory": common.memory_of(system.server.pid)["anon"],
            "report": system.report}


def one_case(setup, base, names, size, piece, amount, runs):
    systems, figures = {}, {name: [] for name in names}
    try:
        for name in names:
            systems[name] = SYSTEMS[name](setup, base)
            systems[name].change(piece, amount, size)
            os.sync()
        for n in range(runs):
            for name in common.turned(names, n):
                figures[name].append(one_run(setup, base, systems[name], n == 0))
                if setup.verbose:
                    common.say(f"{name}: {figures[name][-1]}")
    finally:
        for system in systems.values():
            system.close()
    return figures


def summary(figures, amount):
    qemu = [r["seconds"] for r in figures.get("qemu", [])]
    return {name: {"runs": runs, "seconds": median([r["seconds"] for r in runs]),
                   "to-qemu": ratio([r["seconds"] for r in runs], qemu) if qemu else None,
                   "sent": median([r["sent"] / amount for r in runs]),
                   "memory": max(r["memory"] for r in runs)}
            for name, runs in figures.items()}


def cases(args, sizes):
    for name in sizes:
        for percent in args.changed.split(","):
            for piece in args.pieces.split(","):
                amount = int(SIZES[name] * float(percent) / 100) // PIECES[piece] * PIECES[piece]
                if PIECES[piece] <= amount <= args.most * MIB:
                    yield name, percent, piece, amount


def run(setup, args):
    common.need("nbdkit", "fio", "qemu-img")
    names = [n for n in args.systems.split(",") if n not in NEEDS or shutil.which(NEEDS[n])]
    runs, data, sizes = args.runs or 3, args.data * MIB, args.sizes.split(",")
    if setup.smoke:
        runs, data, sizes = 1, 4 * MIB, ["10G"]
        args.changed, args.pieces = "0.01", "4k"
    base, results, rows = os.path.join(setup.disks, "base.img"), [], []
    for name, percent, piece, amount in cases(args, sizes):
        try:
            large.make_sparse(base, SIZES[name], data)
        except OSError as e:
            common.say(f"{name}: skipped: {e}")
            continue
        figures = summary(one_case(setup, base, names, SIZES[name], PIECES[piece], amount, runs),
                          amount)
        results.append({"size": SIZES[name], "changed": amount, "piece": PIECES[piece],
                        "systems": figures})
        for system, r in figures.items():
            rows.append([f"{size_text(SIZES[name])} {percent} % {piece}", system, r["seconds"],
                         r["to-qemu"], r["sent"], round(r["memory"] / MIB, 1)])
        common.say(f"{name}, {percent} %, {piece}: " + ", ".join(
            f"{s} {r['seconds']:.2f} s" for s, r in figures.items()))
    print(table(["disk, changed, pieces", "", "seconds", "÷ qemu", "sent ÷", "memory MiB"], rows))
    return results
