#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that a guest with two disks moves from A to B and back to A, and that both disks are of
one instant at each commit: the guest writes a record to the first disk, then to the second, so at
any instant the first has as many as the second, or one more.  No acknowledged record is lost on
either way.  The way back sends only what was changed since, since `nbdmirror receive` tracks the
disks from the guest's first write on; one disk was written to behind everybody's back, so it is
copied as a whole."""

import json
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import machine  # noqa: E402
import scene  # noqa: E402
from moves import Move, receive  # noqa: E402


class Received(scene.Server):
    """A disk of `receive`, which is tracked as well."""

    def __init__(self, s, name, size):
        control = s.path(name + ".control")
        process = receive(s, name, size, "--control", control, "--state", s.path(name + ".state"),
                          "--", "mirror-state-volatile=yes")
        super().__init__(process, s.path(name + ".sock"), control, process.disk)
        self.mirror_uri = process.uri


def go(s, name, a, b, sources, dests, part=""):
    """Move from A to B, looking at all disks at the instant of the commit.  What was sent of each
    disk."""
    report = s.path(name + ".json")
    move = Move(s, a, b, [(src, dst.mirror_uri + part) for src, dst in zip(sources, dests)],
                "--quit-source", "--report", report)
    told = []

    def committed():
        told.append(s.story.last)
        for src, dst in zip(sources, dests):
            s.check_same(src.disk, dst.disk)
            s.check_refuses(src)
        s.check_records(told[0], *[d.disk for d in dests])
    move.dest.before["cont"] = committed
    move.run()
    scene.check(told, f"{name}: the destination was never started")
    s.story.wait_for_more(50, machine=b.name)
    scene.check(move.settled() is b, f"{name}: the guest is not there")
    s.check_records(told[0], *[src.disk for src in sources])
    with open(report) as f:
        return [d["sent-bytes"] for d in json.load(f)["disks"]]


def test(s):
    disks = [s.make_disk(f"a{n}.img", data=4 * scene.MIB) for n in (0, 1)]
    try:
        os.setxattr(disks[0], "user.test", b"x")
    except OSError as e:
        raise machine.Unavailable(f"no extended attributes: {e}") from e
    at_a = [s.serve(f"a{n}", disks[n], "--state", s.path(f"a{n}.state"), "--",
                    "mirror-state-volatile=yes") for n in (0, 1)]
    size = os.path.getsize(disks[0])
    at_b = [Received(s, f"b{n}", size) for n in (0, 1)]
    a = s.vm("a", at_a)
    b = s.vm("b", at_b, incoming=True)
    s.story.wait_for_record(50)
    go(s, "there", a, b, at_a, at_b)
    for server in at_a:
        s.wait_for(f"the proof in {server.disk}", lambda at=server: s.status(at)["stands-at"])

    # What was handed over is received back.  A program has changed the second disk meanwhile.
    for server in at_a:
        s.end(server.process)
    with open(disks[1], "r+b") as f:
        f.seek(size // 2)
        f.write(b"x" * 4096)
    at_a = [Received(s, f"a{n}", None) for n in (0, 1)]
    again = s.vm("c", at_a, incoming=True)
    sent = go(s, "back", b, again, at_b, at_a, ",sync=auto")
    scene.check(sent[0] < 3 * scene.MIB, f"{sent[0]} bytes of the first disk were sent back")
    scene.check(sent[1] >= 4 * scene.MIB, f"only {sent[1]} bytes of the second disk were sent back")

    again.shut_down()
    s.check_story()
    s.check_clean(*disks)
    s.check_records(s.story.last, *disks)


scene.main(test)
