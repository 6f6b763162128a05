#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that `nbdmirror migrate` moves a running guest to a disk that `nbdmirror receive` serves:
every record that the guest acknowledged is there, the disks are equal at the commit, the old one
takes no write from then on, the file system is clean, and the guest goes on counting, at one side
only. The destination QEMU was started without -S: refused where that can be seen; where it cannot,
behind something that passes the monitor on, it is told to stop, and waits."""

import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import scene  # noqa: E402
from moves import Move, receive  # noqa: E402


def test(s):
    src = s.serve("src", s.make_disk("src.img", data=8 * scene.MIB))
    dst = receive(s, "dst", os.path.getsize(src.disk))
    a = s.vm("a", [src], recorder="-l 200")
    b = s.vm("b", [dst.guest], incoming=True, stopped=False)
    s.story.wait_for_line("LOADED")
    s.nbdmirror("migrate", "--source-qmp", a.qmp_path, "--dest-qmp", b.qmp_path, "--memory-uri",
                "unix:nowhere",
                "--disk", f"{src.control}={dst.uri}", status=7)
    scene.check(b.qmp("query-status")["status"] == "inmigrate",
                "something was done to the refused destination")
    move = Move(s, a, b, [(src, dst.uri)], "--report", s.path("report.json"))
    told = []

    def committed():
        """Both guests are stopped, and all that was told is on either disk."""
        told.append(s.story.last)
        scene.check(b.qmp("query-status")["status"] == "paused", "the destination was not stopped")
        s.check_same(src.disk, dst.disk)
        s.check_refuses(src)
    move.dest.before["cont"] = committed
    move.run()
    scene.check(told, "the destination was never started")
    s.story.wait_for_more(50, machine="b")
    scene.check(move.settled() is b, "the guest is not at the destination")
    scene.check(not a.running, "the source runs as well")
    b.shut_down()

    s.check_story()
    s.check_clean(dst.disk)
    s.check_records(s.story.last, dst.disk, blocks=True)
    s.check_records(told[0], src.disk, blocks=True)


scene.main(test)
