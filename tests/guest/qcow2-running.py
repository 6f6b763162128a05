#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that the qcow2 disk of a guest that was started without us is mirrored over QEMU's own
dirty bitmaps: at the end the guest is stopped, the destination is equal, and it holds every record
that the guest has acknowledged. A worker that is killed or stopped at any instant, a destination
that dies, and a job, an export or an overlay that somebody else makes leave a guest that goes on,
and nothing of ours in its QEMU; a run that follows removes what two kills have left."""

import json
import os
import random
import shutil
import signal
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import machine  # noqa: E402
import scene  # noqa: E402
from scene import check  # noqa: E402
from tracked import SEED, bitmaps, tidy  # noqa: E402

KILLS = 100 if scene.LONG else 1


def words(s, vm, dest, *options):
    return ["mirror", f"qmp:{vm.qmp_path}/disk0", dest.uri, "--json", *options]


def start(s, vm, dest, *options):
    return s.spawn("mirror", [s.nbdmirror_path, *words(s, vm, dest, *options)])


def guardian_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as f:
        children = [int(word) for word in f.read().split()]
    return children[0] if children else None


def wait_guardian(s, process):
    s.wait_for("the guardian", lambda: guardian_of(process.pid), 10)
    return guardian_of(process.pid)


def gone(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def equal(s, disk, dest):
    told = s.story.last
    s.run(["qemu-img", "compare", "-U", "-f", "qcow2", "-F", "raw", disk, dest.disk])
    s.check_records(told, dest.disk, blocks=True)


def complete(s, vm, disk, dest, *options):
    told = json.loads(s.nbdmirror(*words(s, vm, dest, "--on-ready", "complete", *options)))
    check(told["state"] == "completed", f"the report says {told['state']}")
    check(vm.qmp("query-status")["status"] == "paused", "the guest runs after the hand-over")
    equal(s, disk, dest)
    check(not bitmaps(vm) and not vm.qmp("query-block-exports"), "something was left in QEMU")
    vm.qmp("cont")
    tidy(s, vm)
    return told


def asked(s, vm, disk, dest):
    """SIGUSR1 asks for the hand-over; until then the job stays ready."""
    process = start(s, vm, dest)
    s.wait_for("the copy", lambda: bitmaps(vm), 20)
    time.sleep(1)
    check(process.poll() is None and vm.running, "it did not wait to be asked")
    process.send_signal(signal.SIGUSR1)
    check(s.wait_exit(process) == 0, "the hand-over failed")
    check(not vm.running, "the guest runs after the hand-over")
    equal(s, disk, dest)
    vm.qmp("cont")
    tidy(s, vm)


def killed(s, vm, dest):
    rng = random.Random(SEED)
    scene.note(f"seed {SEED}")
    for run in range(KILLS):
        process = start(s, vm, dest, "--on-ready", "complete")
        guardian = wait_guardian(s, process)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        status = s.wait_exit(process)
        s.wait_for("the guardian's end", lambda guardian=guardian: gone(guardian), 30)
        if not vm.running:
            # It was killed after the commit: then the guest is rightly stopped.
            check(status in (0, -signal.SIGKILL), f"exit status {status}")
            equal(s, s.path("src.qcow2"), dest)
            vm.qmp("cont")
        tidy(s, vm)
    # Both at once: the next run finds what they have left.
    process = start(s, vm, dest)
    guardian = wait_guardian(s, process)
    s.wait_for("the copy", lambda: bitmaps(vm), 20)
    os.kill(guardian, signal.SIGKILL)
    process.kill()
    s.wait_exit(process)
    check(bitmaps(vm) and vm.qmp("query-block-exports"), "who has removed the bitmaps?")


def held(s, vm, raw):
    """The worker is killed, or stopped, while it holds the guest: the destination is so slow that
    it is seen. A client that dies takes nbdkit 1.32 down, so each gets a destination of its own."""
    for number, deadline in ((signal.SIGKILL, 8), (signal.SIGSTOP, 20))[not scene.LONG:]:
        slow = slow_server(s, f"slow{number}", raw)
        process = start(s, vm, slow, "--on-ready", "complete", "--max-downtime", "1s")
        s.wait_for("the hold", lambda: vm.qmp("query-status")["status"] == "paused", 60)
        process.send_signal(number)
        s.wait_for("the guest", lambda: vm.running, deadline)
        s.wait_exit(process)
        tidy(s, vm)


def others(s, vm, disk, dest):
    """Somebody else is there: refused, or at the latest not committed."""
    vm.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": s.path("theirs")}})
    s.nbdmirror(*words(s, vm, dest), status=7)
    vm.qmp("block-export-add", type="nbd", id="theirs", **{"node-name": "disk0"})
    s.nbdmirror(*words(s, vm, dest), status=7)
    check([e["id"] for e in vm.qmp("query-block-exports")] == ["theirs"], "their export is gone")
    vm.qmp("nbd-server-stop")
    s.nbdmirror("mirror", f"qmp:{vm.qmp_path}/nosuchnode", dest.uri, status=1)
    s.nbdmirror("mirror", f"qmp:{vm.qmp_path}/disk0", vm.path("console"), status=7)
    for option in ("--verify", "--resume", "--policy=sync"):
        s.nbdmirror("mirror", f"qmp:{vm.qmp_path}/disk0", dest.uri, option, status=2)
    tidy(s, vm)
    # The guest's disk gets an overlay under the job: its changes are in no bitmap of ours.
    process = start(s, vm, dest)
    s.wait_for("the copy", lambda: bitmaps(vm), 20)
    s.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", disk, "-F", "qcow2", "-u",
           s.path("top.qcow2"), "64M"])
    vm.qmp("blockdev-add", driver="qcow2", **{"node-name": "top", "backing": None, "file": {
        "driver": "file", "filename": s.path("top.qcow2")}})
    vm.qmp("blockdev-snapshot", node="disk0", overlay="top")
    process.send_signal(signal.SIGUSR1)
    check(s.wait_exit(process) == 1, "handed over, and the overlay was forgotten")
    s.wait_for("the guest", lambda: vm.running, 20)
    vm.qmp("block-commit", device="top", **{"job-id": "back"})
    s.wait_for("the commit", lambda: any(j["status"] == "ready" for j in vm.qmp("query-jobs")), 20)
    vm.qmp("block-job-complete", device="back")
    s.wait_for("the job's end", lambda: not vm.qmp("query-jobs"), 20)
    tidy(s, vm)


def slow_server(s, name, raw):
    sock, disk = s.path(name + ".sock"), s.empty_disk(name + ".img", raw)
    process = s.spawn(name, ["nbdkit", "-f", "-U", sock, "--filter=delay", "file", disk,
                               "delay-write=300ms"])
    s.wait_listening(process, sock)
    return scene.Server(process, sock, disk=disk)


def twice(s, vm, dest):
    """A second job through another monitor is refused, and the first one goes on. It ends when
    somebody removes its bitmap."""
    process = start(s, vm, dest)
    s.wait_for("the copy", lambda: bitmaps(vm), 20)
    vm.qmp.close()
    other = ["mirror", f"qmp:{vm.path('qmp')}/disk0", s.path("second.img")]
    s.nbdmirror(*other, status=7)  # QEMU's NBD server listens for the first one
    vm.qmp = machine.Qmp(vm.path("qmp"))
    check(process.poll() is None, "the first job has ended")

    def removed():
        try:
            vm.qmp("block-dirty-bitmap-remove", node="disk0", name=bitmaps(vm)[-1])
        except machine.QmpError:
            return False  # it is being read
        return True
    s.wait_for("the removal", removed, 10)
    check(s.wait_exit(process) == 1, "its bitmap was removed, and the job went on")
    tidy(s, vm)


def lost(s, vm):
    dest = s.plain("dying", s.empty_disk("dying.img", s.path("raw.img")))
    process = start(s, vm, dest, "--bandwidth", "4M", "--give-up-after", "0")
    s.wait_for("the copy", lambda: bitmaps(vm), 20)
    time.sleep(0.5)
    dest.process.kill()
    check(s.wait_exit(process) == 3, "a destination that died is not status 3")
    tidy(s, vm)


def test(s):
    if not shutil.which("qemu-img"):
        raise machine.Unavailable("qemu-utils is not installed")
    raw, disk = s.make_disk("raw.img", data=8 * scene.MIB), s.path("src.qcow2")
    s.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk])
    vm = s.vm("a", [{"driver": "qcow2", "discard": "unmap",
                     "file": {"driver": "file", "filename": disk}}], recorder="-l 200")
    s.story.wait_for_line("LOADED")
    dest = s.plain("dest", s.empty_disk("dest.img", raw))

    told = complete(s, vm, disk, dest)
    scene.note(f"pause {told['downtime-ms']:.0f} ms, {told['pass']} passes")
    asked(s, vm, disk, dest)
    killed(s, vm, dest)
    complete(s, vm, disk, dest, "--policy", "fail")
    held(s, vm, raw)
    lost(s, vm)
    others(s, vm, disk, dest)
    twice(s, vm, dest)
    complete(s, vm, disk, dest)

    process = start(s, vm, dest)
    s.wait_for("the copy", lambda: bitmaps(vm), 20)
    s.check_story()
    last = s.story.last
    vm.kill()
    check(s.wait_exit(process) == 1, "QEMU was killed, and the job went on")
    s.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, s.path("after.img")])
    s.check_records(last, s.path("after.img"), blocks=True)


scene.main(test)
