#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that a guest on a qcow2 overlay, whose base both hosts have, moves with its memory and
without the base: a destination with another base is refused, and a worker killed in the middle is
gone on after, while the guest runs. Every record that the guest acknowledged is there, both
overlays are equal at the commit and whole afterwards, what the base holds was not sent, and neither
base was touched."""

import json
import os
import shutil
import signal
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import machine  # noqa: E402
import scene  # noqa: E402
from images import Base, whole  # noqa: E402
from moves import Move, receive  # noqa: E402

DATA = 8 * scene.MIB


def destination(s, name, base, size):
    return receive(s, name, size, "--format", "qcow2", "--backing", base.path,
                   "--backing-format", "raw")


def goes_on(s, a):
    s.story.wait_for_more(20, machine=a.name)
    scene.check(a.running, "the source does not run")


def other_base(s, src, a, base, size):
    """One byte of the destination's base differs: refused, and the guest goes on."""
    shutil.copy(base.path, s.path("other.img"))
    with open(s.path("other.img"), "r+b") as f:
        f.seek(size - 1)
        f.write(b"x")
    other = Base(s.path("other.img"))
    dst = destination(s, "refused", other, size)
    b = s.vm("refused-b", [dst.guest], incoming=True)
    move = Move(s, a, b, [(src, f"{dst.uri},sync=base,base={base.path}")])
    move.start()
    status = move.wait()
    scene.check(status == 7, f"another base: migrate ended with {status} instead of 7")
    with open(s.path("migrate1.log")) as f:
        scene.check("the destination has another base image" in f.read(), "the reason is not told")
    goes_on(s, a)
    s.wait_exit(dst)
    scene.check(not os.path.exists(dst.disk), "the refused destination was left over")
    other.check()


def killed_worker(s, src, a, base, dst):
    """In the middle of the copy, with the mirror kept for another try."""
    b = s.vm("killed-b", [dst.guest], incoming=True)
    move = Move(s, a, b, [(src, f"{dst.uri},sync=base,base={base.path}")], "--keep-mirrors",
                "--bandwidth", "2M")
    move.start()
    s.wait_for("some of the copy", lambda: (s.status(src)["sent-bytes"] or 0) > scene.MIB)
    os.kill(s.status(src)["worker-pid"], signal.SIGKILL)
    status = move.wait()
    scene.check(status == 1, f"killed worker: migrate ended with {status} instead of 1")
    goes_on(s, a)


def test(s):
    if not shutil.which("qemu-img") or not shutil.which("qemu-nbd"):
        raise machine.Unavailable("qemu-utils is not installed")
    base = Base(s.make_disk("base.img", data=DATA))
    size = os.path.getsize(base.path)
    os.mkdir(s.path("there"))
    theirs = Base(shutil.copy(base.path, s.path("there/base.img")))
    overlay = s.path("src.qcow2")
    s.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base.path, "-F", "raw", overlay])
    src = s.serve("src", overlay, "--format", "qcow2")
    a = s.vm("a", [src], recorder="-l 200")
    s.story.wait_for_line("LOADED")

    other_base(s, src, a, base, size)
    dst = destination(s, "dst", theirs, size)
    killed_worker(s, src, a, base, dst)

    b = s.vm("b", [dst.guest], incoming=True)
    report = s.path("report.json")
    move = Move(s, a, b, [(src, f"{dst.uri},sync=base,base={base.path},verify=on")], "--resume",
                "--report", report)
    told = []

    def committed():
        """Both guests are stopped."""
        told.append(s.story.last)
        s.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", src.uri, dst.guest_uri])
        s.check_refuses(src)
    move.dest.before["cont"] = committed
    move.run()
    scene.check(told, "the destination was never started")
    s.story.wait_for_more(50, machine="b")
    scene.check(move.settled() is b, "the guest is not at the destination")
    scene.check(not a.running, "the source runs as well")
    b.shut_down()
    s.end(dst)
    a.remove()
    s.end(src.process)

    with open(report) as f:
        disk = json.load(f)["disks"][0]
    scene.note(f"{disk['sent-bytes'] >> 20} MiB sent, {disk['skipped-bytes'] >> 20} MiB skipped of "
               f"{size >> 20} MiB; {disk['verified-bytes'] >> 20} MiB verified")
    scene.check(disk["sync"] == "base" and disk["skipped-bytes"] >= DATA, f"not sent: {disk}")
    s.check_story()
    there, here = whole(s, dst.disk, "there.raw"), whole(s, overlay, "here.raw")
    s.check_clean(there)
    s.check_records(s.story.last, there, blocks=True)
    s.check_records(told[0], here, blocks=True)
    base.check()
    theirs.check()


scene.main(test)
