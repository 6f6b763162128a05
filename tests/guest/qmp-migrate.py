#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that `nbdmirror migrate` moves a guest with a qcow2 disk that its QEMU has open by itself
and a second disk that is served and tracked, over the one monitor that all of them share: no record
that the guest has acknowledged is lost. Where the destination's QEMU, a worker or the coordinator
is killed before the commit, the guest goes on at the source, and nothing is left in its QEMU; where
the coordinator is killed later, it goes on at one side only. With --give-back the guest has a qcow2
image and a raw one by itself in the end, and nothing of ours is left; in the long form although
both processes are killed between the two images, with --recover."""

import json
import os
import signal
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import machine  # noqa: E402
import moves  # noqa: E402
import scene  # noqa: E402
from images import whole  # noqa: E402
from moves import receive  # noqa: E402
from scene import check  # noqa: E402
from tracked import SEED, bitmaps, tidy  # noqa: E402

RUNS = 20 if scene.LONG else 1


class Move:
    """To a destination QEMU and destinations of its own."""

    count = 0

    def __init__(self, s, a, served, size, back=False):
        Move.count += 1
        self.s, self.a, self.served, self.back = s, a, served, back
        formats = ("qcow2" if back else "raw", "raw")
        self.dests = [receive(s, f"dst{Move.count}-{n}", size, "--format", formats[n])
                      for n in range(2)]
        # give-back finds a socket that QEMU was told by a relative path, too.
        nodes = [machine.nbd_node(f"disk{n}", self.dests[n].guest, 10) for n in range(2)]
        for node in nodes:
            node["server"]["path"] = os.path.relpath(node["server"]["path"])
        self.b = s.vm(f"b{Move.count}", nodes, incoming=True)
        self.log = s.path(f"move{Move.count}.log")
        self.process = None

    def words(self):
        images = [f",image={d.disk},discard=unmap" if self.back else "" for d in self.dests]
        return [self.s.nbdmirror_path, "migrate", "--source-qmp", self.a.qmp_path, "--dest-qmp",
                self.b.qmp_path, "--memory-uri", "unix:" + self.s.path(f"memory{Move.count}"),
                "--disk", f"qmp:{self.a.qmp_path}/disk0={self.dests[0].uri}{images[0]}",
                "--disk", f"{self.served.control}={self.dests[1].uri}{images[1]}",
                "--max-downtime", "2s", "--log", self.log, *["--give-back"] * self.back]

    def start(self):
        self.process = self.s.spawn(f"migrate{Move.count}", self.words())

    def events(self):
        if not os.path.exists(self.log):
            return []
        with open(self.log) as f:
            return [json.loads(line) for line in f.read().splitlines(True) if line[-1] == "\n"]

    def event(self, name, **data):
        """The first such event; waits for it."""
        def found():
            return [e for e in self.events() if e["event"] == name
                    and all(e.get(k) == v for k, v in data.items())]
        self.s.wait_for(f"{name} {data}", lambda: found() or self.process.poll() is not None, 60)
        check(found(), f"migrate ended before {name} {data}")
        return found()[0]

    def went_back(self, status):
        ended = self.s.wait_exit(self.process, 120)
        check(ended == status, f"migrate ended with {ended} instead of {status}")
        tidy(self.s, self.a)
        check(self.b.process.poll() is not None or not self.b.running, "two guests run")
        self.b.kill()

    def went(self):
        """The guest is at the destination."""
        s = self.s
        s.story.wait_for_more(20, machine=self.b.name)
        check(not self.a.running, "the source runs as well")
        s.wait_for("the end of our bitmaps", lambda: not bitmaps(self.a), 20)
        disks = [d.disk for d in self.dests]
        if self.back:
            drivers = [row["inserted"]["drv"] for row in self.b.qmp("query-block")]
            check(drivers == ["qcow2", "raw"], f"the guest uses {drivers}")
            for dest in self.dests:
                s.wait_exit(dest, 20)
        self.b.shut_down()
        s.check_story()
        if self.back:
            disks[0] = whole(s, disks[0], "whole.raw")
        s.check_records(s.story.last, *disks, blocks=True)


def worker_of(move):
    return move.event("worker", control=f"qmp:{move.a.qmp_path}/disk0")["pid"]


def dest_killed(s, move):
    """After it has been prepared: nothing was handed over yet."""
    move.start()
    move.event("prepared")
    move.b.kill()
    ended = s.wait_exit(move.process, 120)
    if ended == 0:
        raise scene.Failed("the destination was killed, and migrate says that it runs there")
    if move.a.running:
        tidy(s, move.a)
    else:
        # It was killed when it had all already: then only a person may say that it is lost there.
        said = [e["result"] for e in move.events() if e["event"] == "report"]
        check(said == ["committed"], f"the guest runs nowhere, and migrate says {said}")
        move.a.qmp("cont")
        s.story.wait_for_more(3)
        s.nbdmirror("rollback", move.served.control, "--token",
                    [e["rollback-token"] for e in move.events()
                     if e["event"] == "committed"][0], "--destination-stopped")


def worker_killed(_s, move):
    move.start()
    pid = worker_of(move)
    move.event("phase", phase="memory")
    os.kill(pid, signal.SIGKILL)
    move.went_back(1)


def coordinator_killed(_s, move, phase):
    move.start()
    pid = move.event("coordinator")["pid"]
    move.event("phase", phase=phase)
    os.kill(pid, signal.SIGKILL)


def refused(s, move):
    """A monitor of another QEMU, a node that is not there, and what such a disk cannot have."""
    words = move.words()
    place = words.index("--disk") + 1
    for disk, status in ((f"qmp:{move.b.qmp_path}/disk0", 7), (f"qmp:{move.a.qmp_path}/nonode", 7),
                         ("qmp:nonode", 2)):
        s.run([*words[:place], f"{disk}={move.dests[0].uri}", *words[place + 1:]], status=status)
    s.run([*words, "--dry-run"], status=2)
    s.run([*words, "--give-up-if-stalled", "9s"], status=2)
    s.run([*words[:place], words[place] + ",verify=on", *words[place + 1:]], status=2)
    check(move.b.qmp("query-status")["status"] == "inmigrate", "the destination was touched")


def test(s):
    scene.note(f"seed {SEED}")
    raw, image = s.make_disk("raw.img", data=4 * scene.MIB), s.path("src.qcow2")
    s.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image])
    served = s.serve("src", s.make_disk("src.img"))
    size = os.path.getsize(raw)
    a = s.vm("a", [{"driver": "qcow2", "discard": "unmap",
                    "file": {"driver": "file", "filename": image}}, served], recorder="-l 200")
    s.story.wait_for_line("LOADED")

    move = Move(s, a, served, size)
    refused(s, move)
    worker_killed(s, move)
    for _ in range(RUNS):
        dest_killed(s, Move(s, a, served, size))

    for phase in ("memory", "hold", "switch", "commit", "start") if scene.LONG else ():
        move = Move(s, a, served, size)
        coordinator_killed(s, move, phase)
        scene.note(f"killed in {phase}: exit status {s.wait_exit(move.process, 120)}")
        if not a.running:
            move.went()
            return
        move.went_back(1)
    move = Move(s, a, served, size, back=True)
    move.start()
    if scene.LONG:
        move.event("give-back")
        moves.kill_both(s, move.process, move.event("coordinator")["pid"])
        s.run([*move.words(), "--recover"])
        move.went()
        return
    check(s.wait_exit(move.process) == 0, "migrate has failed")
    report = [e for e in move.events() if e["event"] == "report"][0]
    check(report["pause-ms"] > 0, f"no pause was measured: {report}")
    check(report["memory-bytes"] > 1 << 20, f"what was sent of the memory: {report}")
    scene.note(f"pause {report['pause-ms']} ms, {report['disks-pause-ms']} ms of it for the disks")
    move.went()


scene.main(test)
