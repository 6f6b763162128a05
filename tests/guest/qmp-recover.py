#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves what `migrate --recover` does for a guest with two qcow2 disks that its QEMU has open by
itself. After both processes of `migrate` were killed while the disks are mirrored the workers go
on, and --recover ends them, with all that they have in QEMU. After a whole move nothing records any
more that the disks were handed over. A guest that was stopped at the destination goes on there. If
--recover is killed between the two images that it gives back, the next one gives back the other.
The source, whose disks are older, is never started, nor where the destination has ended. No record
of the guest's is lost."""

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
        self.disks = list(zip(disks.controls, self.dests))

    def words(self, *options, back=False):
        words = [self.s.nbdmirror_path, "migrate", "--source-qmp", self.a.qmp_path, "--dest-qmp",
                 self.b.qmp_path, "--memory-uri", "unix:" + self.s.path(f"memory{Move.count}"),
                 "--max-downtime", "2s", "--log", self.log, *options, *["--give-back"] * back]
        for control, dest in self.disks:
            image = f",image={dest.disk},discard=unmap" if back else ""
            words += ["--disk", f"{control}={dest.uri}{image}"]
        return words

    def events(self, name):
        if not os.path.exists(self.log):
            return []
        with open(self.log) as f:
            events = [json.loads(line) for line in f if line.endswith("\n")]
        return [e for e in events if e["event"] == name]

    def begin(self, what, condition, *options):
        """The process, as soon as CONDITION holds."""
        process = self.s.spawn("migrate", self.words(*options, back=True))
        self.s.wait_for(what, lambda: condition() or process.poll() is not None, 60)
        check(process.poll() is None, f"migrate ended before {what}")
        return process

    def recover(self, back=False, status=0):
        told = self.s.run(self.words("--recover", back=back), status=status)
        check("token: \n" not in told, f"a rollback token that is empty: {told}")


def source_is_left(move):
    status = move.a.qmp("query-status")["status"]
    check(status == "postmigrate", f"the source is {status}")


def test(s):
    disks = Disks(s, len(DISKS))
    s.story.wait_for_line("LOADED")
    move = Move(s, disks)
    process = move.begin("bitmaps of both disks",
                         lambda: len(set(bitmaps(move.a))) >= len(DISKS))
    moves.kill_both(s, process, move.events("coordinator")[0]["pid"])
    check(bitmaps(move.a), "the workers have ended with them")
    move.recover(back=True)
    tidy(s, move.a)
    check(move.b.qmp("query-status")["status"] == "inmigrate", "the destination was touched")
    move.b.kill()

    move = Move(s, disks)
    s.run(move.words())
    move.b.qmp("stop")
    # A server that cannot be reached has not given the guest's disk back: the guest needs it.
    server = move.dests[0].guest
    os.rename(server, server + ".away")
    move.recover(status=1)
    status = move.b.qmp("query-status")["status"]
    check(status == "paused", f"a guest whose disk's server has gone is {status}")
    os.rename(server + ".away", server)
    move.recover()
    source_is_left(move)
    s.story.wait_for_more(3, machine=move.b.name)
    process = move.begin("the first image", lambda: move.events("give-back"), "--recover")
    process.kill()
    s.wait_exit(process)
    # The give-back of the other one, if it was killed while it had stopped the guest, has a process
    # that lets it go on. It is stopped again: an image that is given back has nothing to seal.
    s.story.wait_for_more(1, machine=move.b.name)
    move.b.qmp("stop")
    move.recover(back=True)
    source_is_left(move)
    s.story.wait_for_more(20, machine=move.b.name)
    drivers = [row["inserted"]["drv"] for row in move.b.qmp("query-block")]
    check(drivers == ["qcow2", "qcow2"], f"the guest uses {drivers}")
    for dest in move.dests:
        s.wait_exit(dest, 20)
    move.b.shut_down()
    move.recover(status=1)
    source_is_left(move)
    s.check_story()
    raws = [whole(s, d.disk, f"whole{n}.raw") for n, d in enumerate(move.dests)]
    s.check_records(s.story.last, *raws, blocks=True)


scene.main(test)
