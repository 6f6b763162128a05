#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that a guest whose disk is a raw node on top of the connection to a server, as libvirt
makes it, gets its image with `give-back`: the raw node stays, and what is below it is exchanged and
gets the connection's name. When `give-back` is killed, wherever that is, the guest goes on, and the
next run finishes. The image has QEMU's lock at the end, and no record is lost. A raw node that
shows a part of the disk only is refused. The same with a qcow2 image: then a qcow2 node is below
the raw one. In the long form it is killed at random instants as well."""

import fcntl
import os
import random
import signal
import struct
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import machine  # noqa: E402
import moves  # noqa: E402
import scene  # noqa: E402
from images import whole  # noqa: E402
from qmp_proxy import QmpProxy  # noqa: E402
from scene import check  # noqa: E402

KILLS = int(os.environ.get("KILLS", 60)) * scene.LONG
SEED = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 30)))
# Each run is killed there, and the next one goes on from that. QEMU may get the command all the
# same, or drop it with the connection, so a run may find no such step left.
STEPS = ("blockdev-add", "blockdev-reopen", "blockdev-reopen", "blockdev-add", "blockdev-reopen",
         "blockdev-del")
QEMU_WRITES = 101  # the byte that QEMU locks (`man qemu-img`, its source: block/file-posix.c)


def has_writer(path):
    """Would QEMU refuse to share PATH?"""
    with open(path, "r+b") as f:
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, QEMU_WRITES, 1, 0)
        try:
            fcntl.fcntl(f, 37, lock)  # F_OFD_SETLK
        except BlockingIOError:
            return True
    return False


class Disk:
    """A disk of the guest's, on a server of `receive`, with a raw node between."""

    def __init__(self, s, name, image_format, number):
        self.s, self.name, self.format = s, name, image_format
        self.raw, self.connection = f"disk{number}", f"server{number}"
        self.control = s.path(name + ".control")
        self.serve()

    def serve(self):
        self.dest = moves.receive(self.s, self.name, None, "--sealed", "--format", self.format,
                                  "--control", self.control)

    def node(self, **options):
        return {"driver": "raw", "discard": "unmap",
                "file": machine.nbd_node(self.connection, self.dest.guest), **options}

    def give_back(self, path=None):
        self.process = self.s.spawn("give-back", [
            self.s.nbdmirror_path, "give-back", "--qmp", path or self.vm.qmp_path, self.dest.guest,
            self.dest.disk])
        return self.process

    def killed_at(self, step):
        """False: there was no such step, and the run has finished."""
        proxy = QmpProxy(self.vm, like_qemu=False)
        proxy.before[step] = lambda: self.process.kill()
        self.give_back(proxy.path)
        got = self.s.wait_exit(self.process)
        self.settle()  # whoever does that uses the proxy, too
        proxy.close()
        check(not proxy.errors, f"in the test's own actions: {proxy.errors}")
        check(got == (-signal.SIGKILL if step in proxy.seen else 0),
              f"exit status {got} of a run that was to be killed at {step}")
        return got != 0

    def settle(self):
        """Whoever was killed, the guest goes on."""
        self.s.wait_for("a guest that runs", lambda: self.vm.running, 60)
        self.s.story.wait_for_more(5, 30)

    def by_itself(self, *drivers):
        """DRIVERS: of the guest's node, and of what has the connection's name, or None."""
        self.s.wait_exit(self.dest, 20)
        nodes = self.vm.qmp("query-named-block-nodes", flat=True)
        found = {n["node-name"]: n["drv"] for n in nodes}
        check((found.get(self.raw), found.get(self.connection)) == drivers,
              f"the nodes are {found}")
        check("between" not in found, "a node is left")
        check(not os.path.exists(self.dest.guest + ".adopted"), "the record is left")
        check(has_writer(self.dest.disk), "QEMU has not locked the image")
        self.settle()

    def put_on_server(self):
        """As it was at first, but for who owns the node of the connection. The guest goes on. A
        server is not started while QEMU has locked the image."""
        image = {"driver": "file", "node-name": "between", "filename": self.dest.disk,
                 "locking": "off"}
        for old, new in (self.connection, "between"), ("between", self.connection):
            self.vm.qmp("blockdev-add",
                        **(image if new == "between" else machine.nbd_node(new, self.dest.guest)))
            self.vm.qmp("blockdev-reopen", options=[
                {"driver": "raw", "node-name": self.raw, "file": new, "discard": "unmap"}])
            self.vm.qmp("blockdev-del", **{"node-name": old})
            if new == "between":
                self.serve()


def raw_image(s, disk):
    if all(disk.killed_at(step) for step in STEPS):
        check(s.wait_exit(disk.give_back()) == 0, "the last run failed")
    disk.by_itself("raw", "file")
    disk.put_on_server()
    start = time.monotonic()
    check(s.wait_exit(disk.give_back()) == 0, "give-back failed")
    disk.by_itself("raw", "file")
    scene.note(f"longest gap between two records {s.story.largest_gap(since=start) * 1e3:.0f} ms")
    rng = random.Random(SEED)
    for _ in range(KILLS):
        disk.put_on_server()
        disk.give_back()
        time.sleep(rng.uniform(0, 0.2))
        disk.process.kill()
        s.wait_exit(disk.process)
        disk.settle()
        # One that was killed after its last step has left nothing to do.
        if disk.dest.poll() is None or os.path.exists(disk.dest.guest + ".adopted"):
            s.wait_exit(disk.give_back())
        disk.by_itself("raw", "file")


def qcow2_image(s, disk):
    check(disk.killed_at("blockdev-reopen"), "nothing was killed")
    if disk.dest.poll() is None:
        s.wait_exit(disk.give_back())
    disk.by_itself("raw", None)
    drivers = [n["drv"] for n in disk.vm.qmp("query-named-block-nodes", flat=True)]
    check(drivers.count("qcow2") == 1, f"the nodes are {drivers}")


def part(s, vm):
    """The guest would find another disk."""
    os.rename(s.make_disk("made.img"), s.path("part.img"))
    disk = Disk(s, "part", "raw", 2)
    disk.vm = vm
    vm.qmp("blockdev-add", **disk.node(**{"node-name": disk.raw}, size=64 * scene.MIB - 65536))
    vm.qmp("device_add", driver="virtio-blk-pci", id="vd2", drive=disk.raw)
    check(s.wait_exit(disk.give_back()) == 7, "a part of a disk was given back")
    with open(s.path("give-back.log")) as f:
        check("a part of the server's disk" in f.read(), "it was refused for something else")
    check(disk.dest.poll() is None, "the server was ended")


def drive(s, vm, disk):
    """Nobody knows nodes that QEMU has made up, so such a one is replaced."""
    disk.vm = vm
    check(s.wait_exit(disk.give_back()) == 0, "a -drive was not given back")
    s.wait_exit(disk.dest, 20)
    check(has_writer(disk.dest.disk), "QEMU has not locked the image of the -drive")


def test(s):
    scene.note(f"seed {SEED}")
    base = s.make_disk("base.img", data=4 * scene.MIB)
    os.rename(s.make_disk("made.img", data=4 * scene.MIB), s.path("raw.img"))
    s.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", s.path("lent.img")])
    disks = [Disk(s, "raw", "raw", 0), Disk(s, "lent", "qcow2", 1)]
    s.make_disk("drive.img")
    third = Disk(s, "drive", "raw", 3)
    options = ["-drive", f"file=nbd+unix:///?socket={third.dest.guest},format=raw,if=none,id=drive",
               "-device", "virtio-blk-pci,drive=drive"]
    vm = s.vm("a", [disk.node() for disk in disks], recorder="-l 200", options=options)
    for disk in disks:
        disk.vm = vm
    s.story.wait_for_record(20)
    raw_image(s, disks[0])
    qcow2_image(s, disks[1])
    part(s, vm)
    drive(s, vm, third)
    s.story.wait_for_line("LOADED")  # else some blocks were never written
    vm.shut_down()
    s.check_story()
    images = [s.path("raw.img"), whole(s, s.path("lent.img"), "whole.raw")]
    s.check_clean(*images)
    s.check_records(s.story.last, *images, blocks=True)


scene.main(test, 1800 if scene.LONG else 600)
