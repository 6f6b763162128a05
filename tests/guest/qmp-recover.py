#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves what `migrate --recover` does for a guest with two qcow2 disks that its QEMU has open by
itself, after both processes of `migrate --give-back` were killed. While the disks are mirrored: the
workers go on, and --recover ends them, with all that they have in QEMU. Between the two images that
are given back at the destination, where nothing records any more that the disks were handed over:
it gives back the other one. No record of the guest's is lost."""

import json
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import moves  # noqa: E402
import scene  # noqa: E402
from images import whole  # noqa: E402
from scene import check  # noqa: E402
from tracked import Disks, bitmaps, tidy  # noqa: E402

DISKS = (0, 1)


class Move:
    count = 0

    def __init__(self, s, disks):
        Move.count += 1
        self.s, self.a = s, disks.vm
        self.dests = [moves.receive(s, f"dst{Move.count}-{n}", os.path.getsize(disks.raws[n]),
                                    "--format", "qcow2") for n in DISKS]
        self.b = s.vm(f"b{Move.count}", [d.guest for d in self.dests], incoming=True)
        self.log = s.path(f"move{Move.count}.log")
        self.words = [s.nbdmirror_path, "migrate", "--source-qmp", self.a.qmp_path, "--dest-qmp",
                      self.b.qmp_path, "--memory-uri", "unix:" + s.path(f"memory{Move.count}"),
                      "--max-downtime", "2s", "--log", self.log, "--give-back"]
        for control, dest in zip(disks.controls, self.dests):
            self.words += ["--disk", f"{control}={dest.uri},image={dest.disk},discard=unmap"]

    def events(self, name):
        if not os.path.exists(self.log):
            return []
        with open(self.log) as f:
            events = [json.loads(line) for line in f if line.endswith("\n")]
        return [e for e in events if e["event"] == name]

    def killed(self, what, condition):
        """Both processes, as soon as CONDITION holds."""
        process = self.s.spawn("migrate", self.words)
        self.s.wait_for(what, lambda: condition() or process.poll() is not None, 60)
        check(process.poll() is None, f"migrate ended before {what}")
        moves.kill_both(self.s, process, self.events("coordinator")[0]["pid"])

    def recover(self):
        told = self.s.run([*self.words, "--recover"])
        check("token: \n" not in told, f"a rollback token that is empty: {told}")


def test(s):
    disks = Disks(s, len(DISKS))
    s.story.wait_for_line("LOADED")
    move = Move(s, disks)
    move.killed("bitmaps of both disks", lambda: len(set(bitmaps(move.a))) >= len(DISKS))
    check(bitmaps(move.a), "the workers have ended with them")
    move.recover()
    tidy(s, move.a)
    check(move.b.qmp("query-status")["status"] == "inmigrate", "the destination was touched")
    move.b.kill()

    move = Move(s, disks)
    move.killed("the first image", lambda: move.events("give-back"))
    move.recover()
    check(not move.a.running, "the source runs as well")
    s.story.wait_for_more(20, machine=move.b.name)
    drivers = [row["inserted"]["drv"] for row in move.b.qmp("query-block")]
    check(drivers == ["qcow2", "qcow2"], f"the guest uses {drivers}")
    for dest in move.dests:
        s.wait_exit(dest, 20)
    move.b.shut_down()
    s.check_story()
    raws = [whole(s, d.disk, f"whole{n}.raw") for n, d in enumerate(move.dests)]
    s.check_records(s.story.last, *raws, blocks=True)


scene.main(test)
