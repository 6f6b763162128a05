#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that the recipe for a hand-driven QEMU works: a running guest with ext4 is moved with
`mirror`, QMP's migrate with pause-before-switchover, and `complete`, prepared before the switch and
committed after it. Every record that the guest acknowledged is there, the disks are equal at the
commit, the old one takes no write, and the guest goes on counting."""

import json
import os
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import scene  # noqa: E402
from migration import migrate_to, wait_migration  # noqa: E402


def test(s):
    src = s.serve("src", s.make_disk("src.img", data=8 * scene.MIB))
    dst = s.plain("dst", s.empty_disk("dst.img", src.disk))
    a = s.vm("a", [src], recorder="-l 200")
    b = s.vm("b", [dst], incoming=True)
    s.mirror(src, dst.uri, "--max-downtime", "30s")
    s.story.wait_for_line("LOADED")
    s.wait_state(src, "ready", "synchronised")

    migrate_to(a, b, "unix:" + s.path("memory"))
    wait_migration(a, "pre-switchover")
    told = json.loads(
    s.nbdmirror(
        "complete",
        "--prepare-only",
        "--json",
        src.control,
        "--lease",
         "30s"))
    s.check_same(src.disk, dst.disk)
    at_commit = s.story.last
    a.qmp("migrate-continue", state="pre-switchover")
    wait_migration(a, "completed")
    s.wait_for("the destination to be whole", lambda: b.qmp("query-status")["status"] == "paused")
    s.nbdmirror("complete", "--commit", "--token", told["rollback-token"], src.control)
    s.check_refuses(src)
    b.qmp("cont")
    s.story.wait_for_more(50, machine="b")
    b.shut_down()

    s.check_story()
    s.check_clean(dst.disk)
    s.check_records(s.story.last, dst.disk, blocks=True)
    s.check_records(at_commit, src.disk, blocks=True)


scene.main(test)
