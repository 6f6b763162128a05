#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that a guest with two disks moves from A to B and back to A, and that both disks are of
one instant at each commit: the guest writes a record to the first disk, then to the second, so at
any instant the first has as many as the second, or one more. No acknowledged record is lost on
either way."""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import scene  # noqa: E402
from moves import Move  # noqa: E402


def go(s, name, a, b, sources, dests):
    """Move from A to B, looking at all disks at the instant of the commit."""
    move = Move(s, a, b, [(src, dst.uri) for src, dst in zip(sources, dests)], "--quit-source")
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


def test(s):
    disks = [s.make_disk(f"a{n}.img", data=4 * scene.MIB) for n in (0, 1)]
    at_a = [s.serve(f"a{n}", disks[n]) for n in (0, 1)]
    at_b = [s.serve(f"b{n}", s.empty_disk(f"b{n}.img", disks[n])) for n in (0, 1)]
    a = s.vm("a", at_a)
    b = s.vm("b", at_b, incoming=True)
    s.story.wait_for_record(50)
    go(s, "there", a, b, at_a, at_b)

    # Host A's disks were handed over: what is fenced there is the old disk. Now it is a
    # destination.
    for server in at_a:
        s.end(server.process)
        os.unlink(server.control + ".fence")
    at_a = [s.serve(f"a{n}", disks[n]) for n in (0, 1)]
    again = s.vm("c", at_a, incoming=True)
    go(s, "back", b, again, at_b, at_a)

    again.shut_down()
    s.check_story()
    s.check_clean(*disks)
    s.check_records(s.story.last, *disks)


scene.main(test, 180)
