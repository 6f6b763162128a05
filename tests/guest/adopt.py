#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that a running guest's disks are put onto the tracked path and taken off it again with no
I/O error and no lost record: many times in a row, with `adopt` and `give-back` killed at random
instants and run again in either direction, and with servers, jobs and locks in the way. What is
refused, or fails before the guest has moved, leaves nodes, files and processes as they were."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import machine  # noqa: E402
import moves  # noqa: E402
import scene  # noqa: E402
from qmp_proxy import QmpProxy  # noqa: E402
from scene import check  # noqa: E402

CYCLES = int(os.environ.get("CYCLES", "50" if scene.LONG else "3"))
KILLS = 200 if scene.LONG else 6
SEED = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 30)))


class Disk:
    """One disk of the guest, and where it is served while it is adopted."""

    def __init__(self, s, name, node, image):
        self.node, self.image = node, image
        self.socket, self.control = s.path(name + ".nbd"), s.path(name + ".control")

    def adopt(self, vm):
        return ["adopt", "--qmp", vm.qmp_path, "--node", self.node, "--socket", self.socket,
                "--control", self.control, "--json"]

    def give_back(self, vm):
        return ["give-back", "--qmp", vm.qmp_path, self.control, "--json"]


def nodes(vm):
    return sorted(n["node-name"] for n in vm.qmp("query-named-block-nodes", flat=True))


def has_open(vm, image):
    """A file, or a block device."""
    found = os.stat(image)
    for fd in os.listdir(f"/proc/{vm.pid}/fd"):
        try:
            st = os.stat(f"/proc/{vm.pid}/fd/{fd}")
        except OSError:
            continue
        if st.st_rdev == found.st_rdev and (st.st_rdev != 0 or os.path.samestat(st, found)):
            return True
    return False


def proc_words(pid):
    with open(f"/proc/{pid}/cmdline") as f:
        return f.read().split("\0")


def raw_node(image, number):
    return {"driver": "raw", "file": {"driver": "file", "filename": image,
                                      "node-name": f"file{number}"}}


def tidy(s, vm, disks, before):
    check(nodes(vm) == before, f"the nodes are {nodes(vm)}, they were {before}")
    for disk in disks:
        check(has_open(vm, disk.image), f"QEMU does not have {disk.image} open")
        for path in (disk.socket, disk.control, disk.control + ".adopted",
                     disk.control + ".bypass"):
            s.wait_for(f"the end of {path}", lambda path=path: not os.path.exists(path), 10)


def serve_again(s, disk, *options):
    """After a kill, as soon as the sockets are tidied up."""
    s.wait_for("the sockets' end", lambda: not os.path.exists(disk.control), 10)
    s.nbdmirror("serve", disk.image, "--format", "raw", "--socket", disk.socket, "--control",
                disk.control, "--detach", *options)


def cycles(s, vm, disks, before):
    gaps = []
    for cycle in range(1, CYCLES + 1):
        for disk in disks:
            start = time.monotonic()
            told = json.loads(s.nbdmirror(*disk.adopt(vm)))
            s.story.wait_for_more(10)
            gaps.append(s.story.largest_gap(since=start))
            check(not has_open(vm, disk.image), "QEMU still has the image open")
            check(told["server-pid"] == s.status(disk)["server-pid"], "another server")
            check(s.status(disk)["bypassed"] is False, "no job may begin")
        for disk in disks:
            start = time.monotonic()
            s.nbdmirror(*disk.give_back(vm))
            s.story.wait_for_more(10)
            gaps.append(s.story.largest_gap(since=start))
        tidy(s, vm, disks, before)
        if cycle % 50 == 0:
            scene.note(f"{cycle} cycles, {s.story.last} records")
    gaps.sort()
    median, longest = gaps[len(gaps) // 2] * 1e3, gaps[-1] * 1e3
    scene.note(f"{len(gaps)} moves: longest gap between two records {median:.0f} ms (median), "
               f"{longest:.0f} ms (longest)")


def killed(s, vm, disks, before):
    """Kill either command anywhere; whichever is run next to its end, the result is whole."""
    rng = random.Random(SEED)
    scene.note(f"seed {SEED}")
    disk = disks[0]
    for run in range(KILLS):
        for words in (disk.adopt(vm), disk.give_back(vm)):
            process = subprocess.Popen([s.nbdmirror_path, *words], stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
            time.sleep(rng.uniform(0, 0.12))
            process.kill()
            process.wait()
            if run % 2:
                # A give-back that was killed after its last step has nothing left to do.
                s.nbdmirror(*words, status=None if words[0] == "give-back" else 0)
        if not run % 2:
            s.nbdmirror(*disk.adopt(vm))
            check(not has_open(vm, disk.image), "adopted, and QEMU still has the image open")
            s.nbdmirror(*disk.give_back(vm))
        tidy(s, vm, disks, before)
        s.story.wait_for_more(3)


def answers_lost(s, vm, disks, before):
    """Of the commands that begin and end QEMU's job. It does not go on behind our back."""
    disk = disks[0]
    for words in disk.adopt, disk.give_back:
        for command in "blockdev-mirror", "block-job-complete":
            proxy = QmpProxy(vm, like_qemu=False)
            proxy.before[command] = lambda proxy=proxy: proxy.go_deaf(0.2)
            s.nbdmirror(*[proxy.path if word == vm.qmp_path else word for word in words(vm)],
                        status=None)
            proxy.close()
            check(command in proxy.seen, f"{words(vm)[0]}: no {command}")
            check(not vm.qmp("query-jobs"), f"{words(vm)[0]}, {command}: a job is left")
        if words == disk.adopt:
            s.nbdmirror(*words(vm))
    tidy(s, vm, disks, before)


def failures(s, vm, disks, before):
    disk = disks[0]
    # In the long form: a server that answers no write: it is killed, so is a second one, and then
    # the guest goes on without, as long after as it would wait for a third. Where no write was
    # under way the guest has moved before that could be seen; then it is taken back.
    for _ in range(20 * scene.LONG):
        start = time.monotonic()
        process = s.spawn("adopt", [s.nbdmirror_path, *disk.adopt(vm), "--reconnect-delay", "4s",
                                    "--", "--filter=delay", "delay-write=30"])
        if s.wait_exit(process) == 1:
            check(s.story.largest_gap(since=start) < 30, "the guest waited for the server")
            break
        os.kill(s.status(disk)["server-pid"], signal.SIGKILL)
        serve_again(s, disk)
        s.nbdmirror(*disk.give_back(vm))
        tidy(s, vm, disks, before)
    else:
        check(not scene.LONG, "no write was ever under way")
    tidy(s, vm, disks, before)
    # A server that cannot start.
    s.nbdmirror(*disk.adopt(vm), "--", "--filter=nosuchfilter", status=1)
    tidy(s, vm, disks, before)
    # Somebody ends the job: sometimes soon enough.
    cancelled = 0
    for _ in range(10):
        process = subprocess.Popen([s.nbdmirror_path, *disk.adopt(vm)], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)
        while process.poll() is None:
            for job in vm.qmp("query-jobs"):
                try:
                    vm.qmp("block-job-cancel", device=job["id"], force=True)
                except machine.QmpError:
                    pass  # it is over, or being completed
        if process.returncode == 0:
            s.nbdmirror(*disk.give_back(vm))
        else:
            cancelled += 1
        tidy(s, vm, disks, before)
    scene.note(f"{cancelled} of 10 jobs were cancelled by somebody else")
    # A mirror job relies on the tracked path: it is not taken from under it, nor may it begin.
    s.nbdmirror(*disk.adopt(vm))
    dest = s.plain("dest", s.empty_disk("dest.img", disk.image))
    mirror = s.mirror(disk, dest.uri, "--on-ready", "wait")
    s.wait_state(disk, "ready")
    s.nbdmirror(*disk.give_back(vm), status=7)
    s.nbdmirror("cancel", disk.control)
    check(s.wait_exit(mirror) == 6, "the mirror did not end as cancelled")
    s.nbdmirror(*disk.give_back(vm))
    tidy(s, vm, disks, before)


def stopped(s, vm, disks, before):
    """The server is stopped just before QEMU connects to it, just before the end of QEMU's job, or
    when the guest has moved: QEMU waits for it then, with the guest and its monitor. So it is
    killed, and where the guest has moved another one is there."""
    disk = disks[0]
    for step, status in (("blockdev-add", 1), ("block-job-complete", 0), ("job-dismiss", 0)):
        proxy = QmpProxy(vm, like_qemu=False)
        proxy.before[step] = lambda: os.kill(s.status(disk)["server-pid"], signal.SIGSTOP)
        words = disk.adopt(vm)
        words[words.index("--qmp") + 1] = proxy.path
        start = time.monotonic()
        s.nbdmirror(*words, status=status)
        proxy.close()
        check(not proxy.errors, f"{step}: {proxy.errors}")
        s.story.wait_for_more(5, 20)
        gap = s.story.largest_gap(since=start)
        check(gap < 20, f"{step}: the guest waited for {gap:.1f} s")
        if status == 0:
            s.nbdmirror(*disk.give_back(vm))
        tidy(s, vm, disks, before)


def stopped_and_killed(s, vm, disks, before):
    """The same, and adopt is killed while QEMU waits: run again, it gets through all the same."""
    disk = disks[0]
    proxy = QmpProxy(vm, like_qemu=False)
    process = []

    def stop():
        os.kill(s.status(disk)["server-pid"], signal.SIGSTOP)
        threading.Timer(1, process[0].kill).start()
    proxy.before["blockdev-del"] = stop
    words = disk.adopt(vm)
    words[words.index("--qmp") + 1] = proxy.path
    process.append(s.spawn("adopt", [s.nbdmirror_path, *words]))
    s.wait_exit(process[0])
    proxy.close()
    check(not proxy.errors, f"{proxy.errors}")
    start = time.monotonic()
    s.nbdmirror(*disk.adopt(vm))
    s.story.wait_for_more(5, 20)
    check(s.story.largest_gap(since=start) < 30, "the guest waited for its server")
    s.nbdmirror(*disk.give_back(vm))
    tidy(s, vm, disks, before)


def of_the_user(s, vm, disks, before):
    """The same with a server that the user has started: QEMU does not wait for it for ever."""
    disk = disks[0]
    s.nbdmirror("serve", disk.image, "--format", "raw", "--socket", disk.socket, "--control",
                disk.control, "--force-share", "--detach")
    proxy = QmpProxy(vm, like_qemu=False)
    proxy.before["blockdev-add"] = lambda: os.kill(s.status(disk)["server-pid"], signal.SIGSTOP)
    words = disk.adopt(vm)
    words[words.index("--qmp") + 1] = proxy.path
    s.nbdmirror(*words, status=1)
    proxy.close()
    check(not proxy.errors, f"{proxy.errors}")
    s.story.wait_for_more(5, 20)
    serve_again(s, disk, "--force-share")
    check(s.status(disk)["bypassed"], "the guest is forgotten")
    s.nbdmirror(*disk.adopt(vm))
    check(not s.status(disk)["bypassed"], "no job may begin")
    # It is his to start again, too.
    os.kill(s.status(disk)["server-pid"], signal.SIGKILL)
    s.wait_for("the sockets' end", lambda: not os.path.exists(disk.control), 10)
    s.nbdmirror(*disk.give_back(vm), status=1)
    serve_again(s, disk)
    s.nbdmirror(*disk.give_back(vm))
    tidy(s, vm, disks, before)


def evacuated(s, vm, disks, before):
    """An adopted disk moves to other storage of this host: that is what the guest gets back."""
    disk, old = disks[1], disks[1].image
    s.nbdmirror(*disk.adopt(vm))
    disk.image = s.path("moved.img")
    s.nbdmirror("evacuate-disk", disk.control, disk.image)
    told = json.loads(s.nbdmirror(*disk.adopt(vm)))
    check(told["image"] == disk.image, "adopt, run again, names the old image")
    s.nbdmirror(*disk.give_back(vm))
    check(not has_open(vm, old), "QEMU has the old image open")
    os.unlink(old)
    tidy(s, vm, disks, before)


def stated(s, vm, disks, before):
    """With --state there are checkpoints, also after a kill of the server. What was recorded counts
    no more once the guest has written without the server; nor does a job that was left over."""
    disk, state = disks[0], s.path("d0.state")
    volatile = ["--state", state, "--", "mirror-state-volatile=yes"]

    def consistent():
        listed = json.loads(s.nbdmirror("checkpoint", "list", disk.control, "--json"))
        return {c["name"]: c["status"] == "consistent" for c in listed}
    s.nbdmirror("serve", disk.image, "--force-share", "--format", "raw", "--socket", disk.socket,
                "--control", disk.control, "--detach", *volatile)
    dest = s.plain("dest", s.empty_disk("dest.img", disk.image))
    mirror = s.mirror(disk, dest.uri, "--on-ready", "wait")
    s.wait_state(disk, "ready")
    check(s.end(mirror) == 3, "the job cannot be resumed")
    os.kill(s.status(disk)["server-pid"], signal.SIGTERM)
    s.wait_for("the server's end", lambda: not os.path.exists(disk.control), 10)

    words = [*disk.adopt(vm), *volatile]
    told = json.loads(s.nbdmirror(*words))
    check(s.status(disk)["state"] == "idle", "the job that was left over is believed")
    s.nbdmirror("checkpoint", "add", disk.control, "one")
    s.story.wait_for_more(5)
    os.kill(told["server-pid"], signal.SIGKILL)
    s.wait_for("the sockets' end", lambda: not os.path.exists(disk.control), 10)
    s.nbdmirror(*words)
    check(consistent() == {"one": True}, f"after a kill of the server: {consistent()}")
    s.nbdmirror(*disk.give_back(vm))
    s.story.wait_for_more(5)
    s.nbdmirror(*words)
    s.nbdmirror("checkpoint", "add", disk.control, "two")
    check(consistent() == {"one": False, "two": True}, f"adopted again: {consistent()}")
    s.nbdmirror(*disk.give_back(vm))
    tidy(s, vm, disks, before)


def refusals(s, vm, disks, before):
    """Nothing is changed where it would not be safe."""
    disk = disks[0]
    other = open(disk.image, "rb")
    import fcntl
    fcntl.flock(other, fcntl.LOCK_EX)
    s.nbdmirror(*disk.adopt(vm), status=7)
    other.close()
    vm.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": s.path("export.sock")}})
    vm.qmp("block-export-add", id="e", type="nbd", node_name=disk.node, name="x")
    s.nbdmirror(*disk.adopt(vm), status=7)
    vm.qmp("block-export-del", id="e", mode="hard")
    vm.qmp("nbd-server-stop")
    s.run(["qemu-img", "create", "-q", "-f", "qcow2", s.path("q.qcow2"),
           str(os.path.getsize(disk.image))])
    vm.qmp("blockdev-add", driver="qcow2", node_name="q",
           file={"driver": "file", "filename": s.path("q.qcow2")})
    job = {"job_id": "backup", "device": disk.node, "target": "q", "sync": "full", "speed": 1 << 16}
    vm.qmp("blockdev-backup", **job)
    s.nbdmirror(*disk.adopt(vm), status=7)
    vm.qmp("block-job-cancel", device="backup", force=True)
    s.wait_for("the job's end", lambda: not vm.qmp("query-jobs"), 10)
    vm.qmp("blockdev-del", node_name="q")
    vm.qmp("object-add", qom_type="iothread", id="masterKey0")
    s.nbdmirror(*disk.adopt(vm), status=7)
    vm.qmp("object-del", id="masterKey0")
    words = disk.adopt(vm)
    words[words.index("--node") + 1] = "nosuchnode"
    s.nbdmirror(*words, status=1)
    s.nbdmirror("adopt", "--qmp", vm.qmp_path, "--socket", disk.socket, "--control", disk.control,
                status=1)  # which of the two?
    s.nbdmirror("give-back", "--qmp", vm.qmp_path, disk.control, status=1)
    tidy(s, vm, disks, before)


def restarted(s, vm, disks, before):
    """The server dies and is started again: the guest waits. And what has a name is named again."""
    disk = disks[0]
    told = json.loads(s.nbdmirror(*disk.adopt(vm), "--", "--threads=7"))
    os.kill(told["server-pid"], signal.SIGKILL)
    # A guest must not be moved without its server.
    proxy = QmpProxy(vm, like_qemu=False)
    proxy.before["blockdev-add"] = lambda: check(
        "--threads=7" in proc_words(s.status(disk)["server-pid"]), "started with other arguments")
    words = disk.give_back(vm)
    words[words.index("--qmp") + 1] = proxy.path
    s.nbdmirror(*words)
    proxy.close()
    check(not proxy.errors, f"{proxy.errors}")
    tidy(s, vm, disks, before)
    s.nbdmirror(*disk.adopt(vm))
    s.story.wait_for_more(10)
    # adopt, run again, starts it as well: at the guest's socket, and unless the disk was handed
    # over.
    os.kill(s.status(disk)["server-pid"], signal.SIGKILL)
    s.wait_for("the sockets' end", lambda: not os.path.exists(disk.control), 10)
    with open(disk.control + ".fence", "w"):
        s.nbdmirror(*disk.adopt(vm), status=1)
    check(not os.path.exists(disk.control), "a server of a disk that was handed over")
    os.unlink(disk.control + ".fence")
    words = disk.adopt(vm)
    words[words.index("--socket") + 1] = s.path("wrong.nbd")
    s.nbdmirror(*words)
    s.story.wait_for_more(10)
    s.nbdmirror(*disk.give_back(vm))
    tidy(s, vm, disks, before)


def kept(s, vm, disks, before):
    """A server that goes on without the guest knows it, also after a restart and after an adopt
    that fails: no mirror may begin. An adopt that succeeds ends that."""
    disk = disks[0]
    s.nbdmirror(*disk.adopt(vm))
    s.nbdmirror(*disk.give_back(vm), "--keep-server")
    s.run(["kill", str(s.status(disk)["server-pid"])])
    serve_again(s, disk, "--force-share")
    check(s.status(disk)["bypassed"], "the server has forgotten the guest")
    proxy = QmpProxy(vm, like_qemu=False)
    proxy.before["blockdev-mirror"] = lambda: [
        vm.qmp("blockdev-del", node_name=node) for node in nodes(vm) if "-server-" in node]
    words = disk.adopt(vm)
    words[words.index("--qmp") + 1] = proxy.path
    s.nbdmirror(*words, status=1)
    proxy.close()
    check(not proxy.errors, f"{proxy.errors}")
    check(s.status(disk)["bypassed"], "after an adopt that failed the guest is forgotten")
    s.nbdmirror(*disk.adopt(vm))
    check(not s.status(disk)["bypassed"], "no job may begin")
    s.nbdmirror(*disk.give_back(vm))
    tidy(s, vm, disks, before)


def others(s, vm, disks, before):
    """A control socket that is in use for one disk is not to be had for another one, of the same
    guest or of another: both go on, and the first can be given back."""
    told = json.loads(s.nbdmirror(*disks[0].adopt(vm)))
    record = open(disks[0].control + ".adopted").read()
    other = s.make_disk("other.img")
    story = machine.Story()
    second = machine.Vm(s.boot, s.tmp, "b", story, [raw_node(other, 0)])
    s.machines.append(second)
    story.wait_for_record(10)
    wrong = Disk(s, "d0", "disk1", disks[1].image)
    s.nbdmirror(*wrong.adopt(vm), status=7)
    of_other = Disk(s, "d0", "disk0", other)
    before_other = nodes(second)
    s.nbdmirror(*of_other.adopt(second), status=7)
    # As if there were no record: the server itself tells that it is another disk's.
    os.rename(disks[0].control + ".adopted", s.path("kept"))
    s.nbdmirror(*of_other.adopt(second), status=7)
    check(not os.path.exists(disks[0].control + ".adopted"), "a record of what was refused")
    os.rename(s.path("kept"), disks[0].control + ".adopted")
    tidy(s, second, [], before_other)
    check(open(disks[0].control + ".adopted").read() == record, "another record")
    check(s.status(disks[0])["server-pid"] == told["server-pid"], "another server")
    check(not has_open(second, disks[0].image), "the second guest has the first one's disk")
    s.story.wait_for_more(10, machine="a")
    s.nbdmirror(*disks[0].adopt(vm))
    s.nbdmirror(*disks[0].give_back(vm))
    story.wait_for_more(10)
    second.kill()
    story.close()
    tidy(s, vm, disks, before)


def received(s):
    """A guest leaves the server of `nbdmirror receive`: no mirror writes under it any more.  The
    NBD socket of a tracked server will not do in place of its control socket: a mirror job relies
    on that server."""
    image = s.make_disk("r.img")
    source = s.serve("r", image)
    dest = moves.receive(s, "received", os.path.getsize(image))
    story = machine.Story()
    vm = machine.Vm(s.boot, s.tmp, "source", story, [source.socket])
    s.machines.append(vm)
    mirror = s.mirror(source, dest.uri)
    story.wait_for_record(10)
    s.wait_state(source, "ready")
    words = ["give-back", "--qmp", vm.qmp_path, source.socket, image]
    s.nbdmirror(*words, "--keep-server", status=7)
    s.nbdmirror(*words, status=7)
    check(s.status(source)["state"] == "ready", "the mirror job is gone")
    vm.shut_down()
    story.close()
    s.wait_state(source, "ready")
    vm = s.vm("dest", [dest.guest], options=["-S"])
    words = ["give-back", "--qmp", vm.qmp_path, dest.guest, dest.disk, "--keep-server"]
    killed_after_move(s, vm, words)
    s.nbdmirror(*words)
    check(not any(n["drv"] == "nbd" for n in vm.qmp("query-named-block-nodes", flat=True)),
          "the connection to the server is left in QEMU")
    check(not os.path.exists(dest.guest + ".adopted"), "a record is left")
    check(has_open(vm, dest.disk), "QEMU does not have the image open")
    nbd_write(source.socket)
    check(s.wait_exit(mirror, 20) == 7, "the mirror was not refused")
    vm.qmp("cont")
    s.story.wait_for_more(10)
    s.end(dest)
    vm.shut_down()
    s.check_clean(dest.disk)
    s.check_story()
    s.forget()


def killed_after_move(s, vm, words):
    """WORDS is killed when the guest has moved, and nothing was removed yet."""
    proxy = QmpProxy(vm, like_qemu=False)
    process = []
    proxy.after["job-dismiss"] = lambda: process[0].kill()
    words = [proxy.path if word == vm.qmp_path else word for word in words]
    process.append(s.spawn("killed", [s.nbdmirror_path, *words]))
    check(s.wait_exit(process[0]) == -signal.SIGKILL, "it was not killed")
    proxy.close()


def nbd_write(path):
    import nbd
    handle = nbd.NBD()
    handle.connect_unix(path)
    handle.pwrite(b"x" * 512, 0)
    handle.shutdown()


def loop_device(s, image):
    """A block device on IMAGE, or None."""
    try:
        device = s.run(["losetup", "-f", "--show", image]).strip()
    except (OSError, scene.Failed):
        return None
    s.at_end.append(lambda: s.run(["losetup", "-d", device], status=None))
    return device


def formats(s):
    """A -drive, whose path is relative to QEMU's directory and not to ours; a file without a format
    node; direct I/O; a block device; and a qcow2 image, which is refused."""
    for name in ("drive", "file", "direct", "device"):
        image = s.make_disk(name + ".img")
        if name == "device":
            image = loop_device(s, image)
            if image is None:
                scene.note("no loop device can be made: no block device was tried")
                continue
        node, options = [], []
        if name == "drive":
            options = ["-drive", f"file={os.path.relpath(image)},format=raw,if=none,id=drive0",
                       "-device", "virtio-blk-pci,drive=drive0"]
        elif name == "file":
            node = [{"driver": "file", "filename": image}]
        elif name == "device":
            node = [{"driver": "raw", "file": {"driver": "host_device", "filename": image}}]
        else:
            node = [{**raw_node(image, 0), "cache": {"direct": True}}]
            node[0]["file"] = {**node[0]["file"], "cache": {"direct": True}, "aio": "native"}
        vm = s.vm(name, node, options=options)
        s.story.wait_for_record(10)
        disk = Disk(s, name, "disk0", image)
        which = ["--device", "drive0"] if name == "drive" else ["--node", "disk0"]
        words = ["adopt", "--qmp", vm.qmp_path, *which, "--socket", disk.socket, "--control",
                 disk.control, "--aio", "native" if name == "direct" else "threads"]
        was = vm.qmp("query-block")[0]["inserted"]["cache"]
        for _ in range(2):
            s.nbdmirror(*words, cwd="/")
            check(not has_open(vm, image), "QEMU still has the image open")
            s.story.wait_for_more(10)
            s.nbdmirror(*disk.give_back(vm))
            check(has_open(vm, image), "QEMU does not have the image open")
            s.story.wait_for_more(10)
        check(vm.qmp("query-block")[0]["inserted"]["cache"] == was, "another cache mode")
        vm.shut_down()
        s.check_clean(image)
        s.check_story()
        s.check_records(s.story.last, image)
        s.forget()
    image = s.path("q.qcow2")
    s.run(["qemu-img", "convert", "-O", "qcow2", s.make_disk("q.img"), image])
    odd = s.make_disk("odd.img")
    os.truncate(odd, os.path.getsize(odd) + 100)
    vm = s.vm("qcow2", [{"driver": "qcow2", "file": {"driver": "file", "filename": image}},
                        raw_node(odd, 1)])
    disks = [Disk(s, "qcow2", "disk0", image), Disk(s, "odd", "disk1", odd)]
    for disk in disks:
        s.nbdmirror(*disk.adopt(vm), status=7)
    tidy(s, vm, disks, nodes(vm))


def test(s):
    # The more cycles, the more records; on a busy machine a cycle takes many of them.
    images = [s.make_disk(f"disk{n}.img", (64 + CYCLES // 2) * scene.MIB) for n in (0, 1)]
    vm = s.vm("a", [raw_node(image, n) for n, image in enumerate(images)], recorder="-l 200")
    disks = [Disk(s, f"d{n}", f"disk{n}", images[n]) for n in (0, 1)]
    s.story.wait_for_record(20)
    before = nodes(vm)
    for part in (cycles, killed, answers_lost, failures, stopped,
                 *[stopped_and_killed, of_the_user] * scene.LONG, stated, evacuated, refusals,
                 restarted, kept, others):
        start = time.monotonic()
        part(s, vm, disks, before)
        scene.note(f"{part.__name__}: {time.monotonic() - start:.1f} s")
    s.story.wait_for_line("LOADED")  # else some blocks were never written
    vm.shut_down()
    s.check_story()
    images = [disk.image for disk in disks]
    s.check_clean(*images)
    s.check_records(s.story.last, *images, blocks=True)
    s.forget()
    received(s)
    formats(s)


if __name__ == "__main__":
    scene.main(test, max(1800, 10 * CYCLES) if scene.LONG else 600)
