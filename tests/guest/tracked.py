# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest with qcow2 disks that its QEMU has open by itself, and their jobs `mirror qmp:...`."""

import json
import os
import random
import shutil
import signal
import time

import machine
import scene
from scene import check

SEED = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 30)))


def bitmaps(vm):
    return [b["name"] for n in vm.qmp("query-named-block-nodes", flat=True)
            for b in n.get("dirty-bitmaps", [])]


def tidy(s, vm):
    """The guest goes on, and QEMU is as it was."""
    s.wait_for("the end of our bitmaps", lambda: not bitmaps(vm), 20)
    s.wait_for("the end of our exports", lambda: not vm.qmp("query-block-exports"), 20)
    s.wait_for("the end of QEMU's NBD server",
               lambda: not os.path.exists(vm.qmp_path + ".nbdmirror"), 20)
    s.wait_for("the guest", lambda: vm.running, 20)
    s.story.wait_for_more(3)


class Disks:
    def __init__(self, s, number, name="a", recorder="-l 200"):
        if not shutil.which("qemu-img"):
            raise machine.Unavailable("qemu-utils is not installed")
        scene.note(f"seed {SEED}")
        self.s, self.rng = s, random.Random(SEED)
        self.raws = [s.make_disk(f"{name}{n}.raw", data=(8 >> n) * scene.MIB)
                     for n in range(number)]
        self.images = [s.path(f"{name}{n}.qcow2") for n in range(number)]
        # The second disk lies on a base.
        for n, (raw, image) in enumerate(zip(self.raws, self.images)):
            s.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", image] if n
                  else ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, image])
        self.vm = s.vm(name, [{"driver": "qcow2", "discard": "unmap",
                               "file": {"driver": "file", "filename": image}}
                              for image in self.images], recorder=recorder)
        self.controls = [f"qmp:{self.vm.qmp_path}/disk{n}" for n in range(number)]
        self.dests = [None] * number
        self.workers = [None] * number
        self.starts = 0

    def start(self, only=None, options=(), like_base=False):
        """The jobs of all disks, each to a destination of its own: a client that dies takes nbdkit
        1.32 down. It is empty, or holds what the base does. However busy the machine is, passes
        are short enough for the allowed pause."""
        for n, control in enumerate(self.controls):
            if only not in (None, n):
                continue
            self.starts += 1
            name = f"dest{self.starts}"
            if self.dests[n] is not None:
                self.s.end(self.dests[n].process)
                os.unlink(self.dests[n].disk)
            disk = self.s.empty_disk(name + ".img", self.raws[n])
            if like_base:
                shutil.copyfile(self.raws[n], disk)
            self.dests[n] = self.s.plain(name, disk)
            self.workers[n] = self.s.spawn(f"worker{n}", [
                self.s.nbdmirror_path, "mirror", control, self.dests[n].uri, "--json",
                "--max-downtime", "30s", *options])

    def status(self, n):
        return json.loads(self.s.nbdmirror("status", self.controls[n], "--json"))

    def is_ready(self, n):
        check(self.workers[n].poll() is None, f"the worker of disk {n} has ended")
        told = self.s.run([self.s.nbdmirror_path, "status", self.controls[n], "--json"],
                          status=None)
        return told and json.loads(told)["state"] == "ready"

    def wait_ready(self, only=None):
        for n in range(len(self.controls)) if only is None else [only]:
            self.s.wait_for(f"disk {n} to be ready", lambda n=n: self.is_ready(n), 60)

    def check_contents(self):
        told = self.s.story.last
        for image, dest in zip(self.images, self.dests):
            self.s.run(["qemu-img", "compare", "-U", "-f", "qcow2", "-F", "raw", image, dest.disk])
        self.s.check_records(told, *[dest.disk for dest in self.dests], blocks=True)

    def check_committed(self):
        check(self.vm.qmp("query-status")["status"] == "paused", "the guest runs after it was "
              "handed over")
        for worker in self.workers:
            status = self.s.wait_exit(worker)
            check(status == 0, f"{worker.name} ended with {status} after the hand-over")
        self.check_contents()

    def go_on(self):
        self.vm.qmp("cont")
        self.tidy()

    def cancel(self):
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGINT)
        for worker in self.workers:
            self.s.wait_exit(worker)

    def tidy(self):
        tidy(self.s, self.vm)

    def rng_sleep(self, most):
        time.sleep(self.rng.uniform(0, most))
