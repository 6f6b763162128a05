#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that a guest on a qcow2 overlay goes from A to B with `sync=top`, which sends what the
overlay holds and nothing of the base, and back to the overlay that it left at A with
`sync=compare`, which sends what was changed since.  Every record that the guest acknowledged is
there at both commits, both overlays are equal then and whole afterwards, and the base's bytes and
time are what they were on both sides."""

import json
import os
import shutil
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import machine  # noqa: E402
import scene  # noqa: E402
from images import Base, whole  # noqa: E402
from moves import Move, receive  # noqa: E402

DATA = 8 * scene.MIB


class Received(scene.Server):
    """An overlay of `receive`, which is tracked as well."""

    def __init__(self, s, name, size, *options):
        control = s.path(name + ".control")
        process = receive(s, name, size, "--format", "qcow2", "--control", control, *options)
        super().__init__(process, s.path(name + ".sock"), control, process.disk)
        self.mirror_uri, self.guest_uri = process.uri, process.guest_uri


def go(s, name, a, b, src, dst, sync):
    """Move from A to B.  The report on the disk, and the last record that was told until the
    commit."""
    report = s.path(name + ".json")
    move = Move(s, a, b, [(src, f"{dst.mirror_uri},sync={sync}")], "--quit-source", "--report",
                report)
    told = []

    def committed():
        """Both guests are stopped."""
        told.append(s.story.last)
        s.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", src.uri, dst.guest_uri])
        s.check_refuses(src)
    move.dest.before["cont"] = committed
    move.run()
    scene.check(told, f"{name}: the destination was never started")
    s.story.wait_for_more(50, machine=b.name)
    scene.check(move.settled() is b, f"{name}: the guest is not there")
    with open(report) as f:
        disk = json.load(f)["disks"][0]
    scene.check(disk["sync"] == sync, f"{name}: {disk}")
    scene.note(f"{name}: {disk['sent-bytes']} bytes sent, {disk['skipped-bytes']} skipped")
    return disk, told[0]


def test(s):
    if not shutil.which("qemu-img") or not shutil.which("qemu-nbd"):
        raise machine.Unavailable("qemu-utils is not installed")
    base = Base(s.make_disk("base.img", data=DATA))
    size = os.path.getsize(base.path)
    os.mkdir(s.path("there"))
    theirs = Base(shutil.copy(base.path, s.path("there/base.img")))
    overlay = s.path("a.img")  # where receive() looks for it on the way back
    s.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base.path, "-F", "raw", overlay])
    src = s.serve("src", overlay, "--format", "qcow2")
    a = s.vm("a", [src], recorder="-l 200")
    s.story.wait_for_line("LOADED")

    at_b = Received(s, "b", size, "--backing", theirs.path, "--backing-format", "raw")
    b = s.vm("b", [at_b], incoming=True)
    there, told = go(s, "there", a, b, src, at_b, "top")
    scene.check(there["skipped-bytes"] >= DATA, f"the base was sent: {there}")
    s.end(src.process)
    s.check_records(told, whole(s, overlay, "left.raw"), blocks=True)

    at_a = Received(s, "a", None)
    again = s.vm("c", [at_a], incoming=True)
    back, _ = go(s, "back", b, again, at_b, at_a, "compare")
    # The guest has its journal and the blocks to write to, which is less.
    scene.check(back["skipped-bytes"] >= size - 16 * scene.MIB, f"too little was left out: {back}")

    again.shut_down()
    s.end(at_a.process)
    s.check_story()
    s.check_clean(whole(s, overlay, "here.raw"))
    s.check_records(s.story.last, s.path("here.raw"), blocks=True)
    base.check()
    theirs.check()


scene.main(test)
