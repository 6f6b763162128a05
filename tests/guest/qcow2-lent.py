#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that a guest whose disk is served from a qcow2 overlay by `receive` gets that image itself
with `give-back`: the guest stands still for a moment, no request fails, no record is lost, and the
image has one user at each time. When `give-back` is killed the guest goes on, at the server or with
the image, and the next run finishes. A QEMU that cannot open the image leaves the guest at the
server; so does a base that is named in place of the image, and a mirror job, which relies on every
write passing there. In the long form it is killed at each step, and at random instants."""

import os
import random
import signal
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import moves  # noqa: E402
import scene  # noqa: E402
from images import Base, whole  # noqa: E402
from qmp_proxy import QmpProxy  # noqa: E402
from scene import check  # noqa: E402

KILLS = int(os.environ.get("KILLS", 60)) * scene.LONG
SEED = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 30)))
STEPS = ("stop", "blockdev-add", "blockdev-mirror", "block-job-complete", "blockdev-del") \
    if scene.LONG else ("blockdev-mirror",)


class Lent:
    """A guest on the server of `receive`, and what takes it off that."""

    def __init__(self, s):
        base = s.make_disk("base.img", data=4 * scene.MIB)
        self.base = Base(base)
        self.s, self.image = s, s.path("d.img")
        s.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", self.image])
        self.serve()
        self.vm = s.vm("a", [self.dest.guest], recorder="-l 200")
        s.story.wait_for_record(20)

    def serve(self):
        self.control = self.s.path("d.control")
        self.dest = moves.receive(self.s, "d", None, "--sealed", "--format", "qcow2", "--control",
                                  self.control)

    def start(self, path, image=None):
        self.process = self.s.spawn("give-back", [
            self.s.nbdmirror_path, "give-back", "--qmp", path, self.dest.guest,
            image or self.image])

    def run(self, actions, status, image=None, after=None):
        """Run give-back with ACTIONS, {command: function}, before that command, and others AFTER
        it."""
        proxy = QmpProxy(self.vm, like_qemu=False)
        proxy.before.update(actions)
        proxy.after.update(after or {})
        self.start(proxy.path, image)
        got = self.s.wait_exit(self.process)
        self.settle()
        proxy.close()
        check(not proxy.errors, f"in the test's own actions: {proxy.errors}")
        check(got == status, f"exit status {got}, not {status}")

    def settle(self):
        """Whoever was killed, the guest goes on."""
        self.s.wait_for("a guest that runs", lambda: self.vm.running, 60)
        self.s.story.wait_for_more(5, 30)

    def driver(self):
        return self.vm.qmp("query-block")[0]["inserted"]["drv"]

    def at_server(self):
        """Everything is as it was."""
        self.s.wait_for("the nodes of before", lambda: sorted(
            n["node-name"] for n in self.vm.qmp("query-named-block-nodes", flat=True)) == ["disk0"])
        check(self.driver() == "nbd", "the guest has moved")
        self.s.wait_for("the record's end",
                        lambda: not os.path.exists(self.dest.guest + ".adopted"))
        self.s.story.wait_for_more(5, 30)

    def by_itself(self):
        check(self.driver() == "qcow2", f"the guest uses {self.driver()}")
        self.s.wait_exit(self.dest, 8)  # it does not wait for an image that QEMU has now
        self.s.wait_for("the record's end",
                        lambda: not os.path.exists(self.dest.guest + ".adopted"))
        check(not self.vm.qmp("query-jobs"), "a job is left")
        nodes = self.vm.qmp("query-named-block-nodes", flat=True)
        check("nbd" not in [n["drv"] for n in nodes], "the node of the server is left")
        self.s.story.wait_for_more(10, 30)

    def again(self):
        """The guest is shut down, and another one uses the same image through a new server."""
        self.vm.shut_down()
        self.s.check_story()
        self.serve()
        self.vm = self.s.vm(f"b{len(self.s.machines)}", [self.dest.guest], recorder="-l 200")
        self.s.story.wait_for_more(5, machine=self.vm.name)


    def killed(self):
        """After a give-back that was killed."""
        if self.driver() == "nbd":
            self.at_server()
        else:
            self.by_itself()
            self.again()


def refusals(t):
    """Nothing is changed, and the guest stays where it is."""
    s = t.s
    t.run({}, 7, t.base.path)
    t.at_server()
    # A mirror job relies on the server.
    source = scene.Server(t.dest, t.dest.guest, t.control)
    onward = s.plain("onward", s.empty_disk("onward.img", t.base.path))
    mirror = s.mirror(source, onward.uri, "--on-ready", "wait")
    s.wait_state(source, "ready")
    t.run({}, 7)
    t.at_server()
    s.nbdmirror("cancel", t.control)
    check(s.wait_exit(mirror) == 6, "the mirror did not end as cancelled")
    # Somebody else has the image when QEMU is to open it, and leaves it soon.
    other = s.path("other.sock")
    holders = []

    def take():
        holders.append(s.spawn("other", ["qemu-nbd", "-t", "-f", "qcow2", "-k", other, t.image]))
        s.wait_listening(holders[0], other)

    def leave_soon():
        threading.Timer(0.3, holders[0].terminate).start()
    t.run({"blockdev-add": take}, 1, after={"blockdev-add": leave_soon})
    t.at_server()


def late_answer(t):
    """A QEMU that does not say in time whether its guest runs is given no image: it may be written
    to."""
    proxy = QmpProxy(t.vm, like_qemu=False)

    def late():
        proxy.before["query-status"] = lambda: time.sleep(25)

    proxy.before["query-status"] = late  # the first one asks whether the guest has arrived
    t.start(proxy.path)
    check(t.s.wait_exit(t.process) == 1, "it was given back")
    check("stop" not in proxy.seen, "the guest was stopped")
    t.settle()
    t.at_server()
    proxy.close()
    check(not proxy.errors, f"in the test's own actions: {proxy.errors}")


def kills(t):
    """At random instants."""
    rng = random.Random(SEED)
    scene.note(f"seed {SEED}")
    moved = 0
    for _ in range(KILLS):
        t.start(t.vm.qmp_path)
        time.sleep(rng.uniform(0, 0.3))
        t.process.kill()
        t.s.wait_exit(t.process)
        t.settle()
        moved += t.driver() != "nbd"
        t.killed()
    scene.note(f"{moved} of {KILLS} had moved")


def test(s):
    t = Lent(s)
    refusals(t)
    late_answer(t)
    for step in STEPS:
        t.run({step: lambda: t.process.kill()}, -signal.SIGKILL)
        t.killed()
    kills(t)
    # The last step that the guest waits for: somebody else does the rest.
    t.run({"cont": lambda: t.process.kill()}, -signal.SIGKILL)
    t.by_itself()
    if scene.LONG:
        s.story.wait_for_line("LOADED", 120)  # else some blocks were never written
    t.vm.shut_down()
    s.check_story()
    s.check_clean(whole(s, t.image, "whole.raw"))
    s.check_records(s.story.last, s.path("whole.raw"), blocks=scene.LONG)
    t.base.check()


# A new guest starts after every second kill.
scene.main(test, 600 + 60 * KILLS if scene.LONG else 600)
