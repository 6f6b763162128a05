#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that a guest with two qcow2 disks that its QEMU has open by itself survives any kill while
`nbdmirror migrate --give-back` moves it on, again and again: the coordinator, a worker,
the destination QEMU, its disks' server, or the source's
monitor, which is cut off and deaf for a while. At each end the guest runs on one side, its disks
hold every record that it has acknowledged, and no bitmap, export, job, server or record is left.
KILLS (100) rounds, which only the long form has; SEED chooses them."""

import json
import os
import random
import signal
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import machine  # noqa: E402
import scene  # noqa: E402
from moves import receive  # noqa: E402
from qmp_proxy import QmpProxy  # noqa: E402
from scene import check  # noqa: E402
from tracked import SEED, Disks, bitmaps  # noqa: E402

KILLS = int(os.environ.get("KILLS", 100))
KINDS = ("coordinator", "worker", "destination", "server", "monitor")
DISKS = (0, 1)


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as f:
            return [int(word) for word in f.read().split()]
    except OSError:
        return []


def nodes_of(vm):
    rows = sorted((row for row in vm.qmp("query-block") if row.get("qdev")),
                  key=lambda row: row["qdev"])
    return [row["inserted"]["node-name"] for row in rows], [row["inserted"]["drv"] for row in rows]


class Move:
    """From A, which has IMAGES open by itself, to a new machine on new images."""

    count = 0

    def __init__(self, s, a, images, size):
        Move.count += 1
        self.s, self.a, self.images, self.name = s, a, images, f"m{Move.count}"
        self.dests = [receive(s, f"{self.name}r{n}", size, "--format", "qcow2") for n in DISKS]
        self.b = s.vm(f"{self.name}b", [d.guest for d in self.dests], incoming=True,
                      reconnect_delay=20)
        self.source, self.dest = QmpProxy(a, like_qemu=False), QmpProxy(self.b, like_qemu=False)
        s.at_end += [self.source.close, self.dest.close]
        self.log = s.path(self.name + ".json")
        self.starting = threading.Lock()  # nobody is killed there once the guest may run there
        self.started = False
        self.dest.before["cont"] = self.start_there

    def start_there(self):
        with self.starting:
            self.started = True

    def words(self):
        words = [self.s.nbdmirror_path, "migrate", "--source-qmp", self.source.path, "--dest-qmp",
                 self.dest.path, "--memory-uri", "unix:" + self.s.path(self.name + ".memory"),
                 "--max-downtime", "2s", "--log", self.log, "--give-back"]
        for node, dest in zip(nodes_of(self.a)[0], self.dests):
            words += ["--disk",
                      f"qmp:{self.source.path}/{node}={dest.uri},image={dest.disk},discard=unmap"]
        return words

    def start(self):
        self.process = self.s.spawn(self.name, self.words())
        self.s.wait_for("the coordinator", self.events)

    def events(self):
        if not os.path.exists(self.log):
            return []
        with open(self.log) as f:
            return [json.loads(line) for line in f if line.endswith("\n")]

    def kill(self, kind, rng):
        """One of KIND, if there is one now: what it was."""
        if kind == "monitor":
            self.source.go_deaf(rng.choice((0.1, 1, 4, 12)))
            return kind
        with self.starting:
            if kind in ("destination", "server") and self.started:
                return None
            if kind == "destination":
                self.b.kill()
                return kind
            victims = {"coordinator": lambda: [self.events()[0]["pid"]],
                       "worker": self.workers, "server": self.servers}[kind]()
            if kind in ("worker", "server"):
                victims = [rng.choice(victims)] if victims else []
            for pid in victims:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    return None
            return kind if victims else None

    def workers(self):
        return [e["pid"] for e in self.events() if e["event"] == "worker"]

    def servers(self):
        """The nbdkits, and the qemu-nbds behind them."""
        return [pid for dest in self.dests for child in children(dest.pid)
                for pid in [child, *children(child)]]

    def end(self):
        status = self.s.wait_exit(self.process, 180)
        errors = self.source.errors + self.dest.errors
        check(not errors, f"in the test's own actions: {errors}")
        with open(self.s.path(self.name + ".log")) as f:
            told = f.read()
        check("by signal 11" not in told, f"{self.name}: a process crashed")
        committed = [e["rollback-token"] for e in self.events() if e["event"] == "committed"]
        check(status != 0 or f"token: {committed[0]}\n" in told,
              f"{self.name}: the rollback token is not told")
        return status

    def give_back_late(self):
        """What `migrate` advises where the guest has arrived, and is still on the servers."""
        for dest, driver in zip(self.dests, nodes_of(self.b)[1]):
            if driver == "nbd":
                self.s.nbdmirror("give-back", "--qmp", self.dest.path, dest.guest, dest.disk)

    def settle(self):
        """The machine where the guest is, and its images, when all is as it has to be."""
        s, a, b = self.s, self.a, self.b
        s.wait_for("a guest that runs", lambda: a.running or b.running, 60)
        here = b if b.running else a
        check(not (a.running and b.running), f"{self.name}: two guests run")
        s.story.wait_for_more(10, 60, machine=here.name)
        s.wait_for("the end of our bitmaps", lambda: not bitmaps(a), 30)
        s.wait_for("the end of our exports", lambda: not a.qmp("query-block-exports"), 30)
        s.wait_for("the end of QEMU's NBD server",
                   lambda: not os.path.exists(self.source.path + ".nbdmirror"), 30)
        if here is b:
            self.give_back_late()
            check(nodes_of(b)[1] == ["qcow2"] * 2, f"{self.name}: {nodes_of(b)[1]}")
        self.source.close()
        self.dest.close()
        check(not here.qmp("query-jobs"), f"{self.name}: a job is left")
        (a if here is b else b).kill()
        for dest in self.dests:
            if here is not b and dest.poll() is None:
                s.end(dest)
            s.wait_exit(dest, 30)
            check(not os.path.exists(dest.guest + ".adopted"), f"{self.name}: a record is left")
        images = [d.disk for d in self.dests]
        for image in self.images if here is b else images:
            if here is b or os.path.exists(image):  # `receive` removes what is given up
                os.unlink(image)
        return here, images if here is b else self.images


def exact(s, vm, images):
    """What the disks hold at one instant is what the guest has told until then."""
    vm.qmp("stop")
    told, raws = s.story.last, [s.path(f"whole{n}.raw") for n in DISKS]
    for image, raw in zip(images, raws):
        s.run(["qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", image, raw])
    s.check_records(told, *raws, blocks=True)
    vm.qmp("cont")


def test(s):
    if not scene.LONG:
        raise machine.Unavailable("takes long: NBDMIRROR_LONG=1")
    disks, rng = Disks(s, len(DISKS)), random.Random(SEED)
    a, images, size = disks.vm, disks.images, os.path.getsize(disks.raws[0])
    s.story.wait_for_line("LOADED")
    went, took, killed = 0, 4.0, dict.fromkeys(KINDS, 0)
    for number in range(KILLS):
        move = Move(s, a, images, size)
        begin = time.monotonic()
        move.start()
        time.sleep(rng.uniform(0, took))
        kinds = [rng.choice(KINDS)] + [rng.choice(KINDS)] * (rng.random() < 0.2)
        done = [move.kill(kind, rng) for kind in kinds]
        status = move.end()
        if not any(done) and status == 0:
            took = max(2.0, time.monotonic() - begin)
        a, images = move.settle()
        exact(s, a, images)
        went += a is move.b
        for kind in filter(None, done):
            killed[kind] += 1
        if os.environ.get("KEEP", "0") != "0" or number % 10 == 9:
            scene.note(f"{number + 1}: {done}, {status}, at {a.name}, {s.story.last} records")
    scene.note(f"{went} of {KILLS} went on; killed: {killed}")
    a.shut_down()
    s.check_story()


scene.main(test, 60 * KILLS)
