#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that `migrate --adopt --give-back` moves a guest that was started without us, with two
disks, there and back: before and after QEMU has the images open itself, no server and no record is
left, and no record of the guest's is lost. If it fails before the commit the guest uses its images
at the source by itself again: a server that cannot start, a destination QEMU that is killed, a
server that is killed while the memory is copied; and in the long form at other instants as well, a
worker that is killed, both processes (--recover), and the coordinator at random instants."""

import json
import os
import random
import signal
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import moves  # noqa: E402
import scene  # noqa: E402
from qmp_proxy import QmpProxy  # noqa: E402
from scene import check  # noqa: E402

KILLS = int(os.environ.get("KILLS", 60))
SEED = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 30)))
NUMBERS = (0, 1)
LATE = "migrate-continue"  # every disk is prepared: the move may go on to the destination


def raw_node(image, number):
    return {"driver": "raw", "file": {"driver": "file", "filename": image,
                                      "node-name": f"file{number}"}}


def has_open(vm, image):
    found = os.stat(image)
    fds = f"/proc/{vm.pid}/fd"
    return any(os.path.exists(f"{fds}/{fd}") and os.path.samestat(os.stat(f"{fds}/{fd}"), found)
               for fd in os.listdir(fds))


class Move:
    """From A, which uses IMAGES by itself, to a new machine on new images."""

    count = 0

    def __init__(self, s, a, images):
        Move.count += 1
        self.s, self.a, self.images, self.name = s, a, images, f"m{Move.count}"
        self.folder = s.path(self.name)
        size = os.path.getsize(images[0])
        self.dests = [moves.receive(s, f"{self.name}r{n}", size) for n in NUMBERS]
        self.b = s.vm(f"{self.name}b", [dest.guest for dest in self.dests], incoming=True)
        self.source, self.dest = QmpProxy(a, like_qemu=False), QmpProxy(self.b, like_qemu=False)
        s.at_end += [self.source.close, self.dest.close]
        self.log, self.report = s.path(self.name + ".json"), s.path(self.name + ".report")

    def words(self, *options):
        words = [self.s.nbdmirror_path, "migrate", "--adopt=" + self.folder,
                 "--source-qmp", self.source.path, "--dest-qmp", self.dest.path,
                 "--memory-uri", "unix:" + self.s.path(self.name + ".memory"), "--log", self.log,
                 "--report", self.report, "--quit-source"]
        for n in NUMBERS:
            image = "" if options[:1] == ("--after-commit-exec",) else \
                f",image={self.dests[n].disk}"
            words += ["--disk", f"vd{n}={self.dests[n].uri},discard=unmap{image}"]
            words += ["--give-back"] if image and n == 0 else []
        return words + list(options)

    def start(self, *options):
        self.process = self.s.spawn(self.name, self.words(*options))
        return self.process

    def events(self):
        if not os.path.exists(self.log):
            return []
        with open(self.log) as f:
            return [json.loads(line) for line in f if line.endswith("\n")]

    def coordinator(self):
        self.s.wait_for("the coordinator", self.events)
        return self.events()[0]["pid"]

    def end(self, *statuses):
        got = self.s.wait_exit(self.process)
        errors = self.source.errors + self.dest.errors
        check(not errors, f"in the test's own actions: {errors}")
        check(got in statuses, f"{self.name}: exit status {got}, not {statuses}")
        with open(self.s.path(self.name + ".log")) as f:
            check("by signal 11" not in f.read(), f"{self.name}: a process crashed")
        self.source.close()
        self.dest.close()

    def by_itself(self, vm, images):
        """VM uses IMAGES, nobody else, and nothing is left in the folder."""
        self.s.story.wait_for_more(10, 30, machine=vm.name)
        check(vm.running, f"{vm.name} does not run")
        for row in vm.qmp("query-block"):
            check(not row.get("qdev") or row["inserted"]["drv"] == "raw",
                  f"{self.name}: {vm.name} uses {row}")
        for image in images:
            check(has_open(vm, image), f"{self.name}: QEMU does not have {image} open")
        check(not vm.qmp("query-jobs"), "a job is left")

    def stayed(self):
        self.by_itself(self.a, self.images)
        left = [f for f in os.listdir(self.folder) if not f.endswith(".worker")] if \
            os.path.isdir(self.folder) else []
        check(not left, f"{self.name}: left over: {left}")
        self.b.kill()
        for dest in self.dests:
            if dest.poll() is None:
                self.s.end(dest)

    def arrived(self):
        """The machine and its images."""
        images = [dest.disk for dest in self.dests]
        self.by_itself(self.b, images)
        for dest in self.dests:
            self.s.wait_exit(dest, 20)
        left = os.listdir(self.folder)
        check(sorted(left) == ["vd0.control.fence", "vd1.control.fence"], f"left over: {left}")
        self.s.wait_for("the source QEMU's end", lambda: self.a.process.poll() is not None)
        return self.b, images


def there(s, a, images):
    move = Move(s, a, images)
    move.start()
    move.end(0)
    with open(move.report) as f:
        check(json.load(f)["result"] == "migrated", "another result")
    return move.arrived()


def by_a_hook(s, a, images):
    """The same with a hook that takes the guest off at the destination, as on another host."""
    move = Move(s, a, images)
    move.start("--after-commit-exec", " && ".join(
        f"{s.nbdmirror_path} give-back --qmp {move.dest.path} {dest.guest} {dest.disk}"
        for dest in move.dests))
    move.end(0)
    return move.arrived()


def server_killed(s, a, images, table, instant):
    """The first disk's: the guest waits for it, and QEMU's monitor for the guest. It is started
    again before the monitor is needed."""
    move = Move(s, a, images)

    def kill():
        status = json.loads(s.nbdmirror("status", move.folder + "/vd0.control", "--json"))
        os.kill(status["server-pid"], signal.SIGKILL)
    getattr(move.source, table)[instant] = kill
    move.start()
    move.end(*(0, 1, 3) if instant == LATE else (1, 3))
    check(any(e["event"] == "server-started" for e in move.events()), "no server was started")
    check("no answer" not in str(move.events()), "a command waited for QEMU's monitor in vain")
    if move.process.returncode == 0:
        return move.arrived()
    move.stayed()
    return a, images


def monitor_lost(s, a, images, seconds):
    """QEMU's monitor is lost before the switch, and answers nobody for longer than a connection is
    waited for: the migration has to be cancelled afterwards, or it waits with a stopped guest."""
    move = Move(s, a, images)
    move.source.event["pre-switchover"] = lambda: move.source.go_deaf(seconds)
    move.start()
    move.end(1, 3)
    move.stayed()


def failures(s, a, images):
    # The second disk's server cannot start: the first one's guest goes back.
    move = Move(s, a, images)
    os.mkdir(move.folder)
    os.mkdir(move.folder + "/vd1.nbd")
    move.start()
    move.end(1)
    os.rmdir(move.folder + "/vd1.nbd")
    check(move.b.qmp("query-status")["status"] == "inmigrate", "the destination was touched")
    move.stayed()
    # The destination QEMU dies when the guest is stopped.
    move = Move(s, a, images)
    move.source.before["migrate-continue"] = move.b.kill
    move.start()
    move.end(1, 3)
    move.stayed()
    server_killed(s, a, images, "before", "migrate")
    if not scene.LONG:
        return a, images
    for instant in "active", "pre-switchover":
        server_killed(s, a, images, "event", instant)
    for seconds in 22, 36:  # the second time nobody waits any more for it to be cancelled
        monitor_lost(s, a, images, seconds)
    # A worker dies.
    move = Move(s, a, images)
    move.source.before["migrate"] = lambda: os.kill(
        [e for e in move.events() if e["event"] == "worker"][0]["pid"], signal.SIGKILL)
    move.start()
    move.end(1, 3)
    move.stayed()
    # Both processes are killed.
    for command in "blockdev-mirror", "migrate":
        move = Move(s, a, images)

        def kill_both(move=move):
            for pid in move.process.pid, move.coordinator():
                os.kill(pid, signal.SIGKILL)
        move.source.before[command] = kill_both
        move.start()
        move.end(-9)
        move.source = QmpProxy(a, like_qemu=False)
        move.dest = QmpProxy(move.b, like_qemu=False)
        s.at_end += [move.source.close, move.dest.close]
        s.run(move.words("--recover"))
        move.source.close()
        move.dest.close()
        move.stayed()
    for table in "before", "after":
        a, images = server_killed(s, a, images, table, LATE)
    return a, images


def victim(move, kind, number):
    """The process id of disk NUMBER's, or None: there is none now."""
    if kind == "coordinator":
        return move.coordinator()
    if kind == "destination":  # once it was told to run, the guest would die with it
        return None if "cont" in move.dest.seen else move.b.pid
    if kind == "worker":
        pids = [e["pid"] for e in move.events() if e["event"] == "worker"]
        return pids[number] if number < len(pids) else None
    try:
        with open(f"{move.folder}/vd{number}.nbd.pid") as f:
            return int(f.read())
    except (OSError, ValueError):
        return None


def kills(s, a, images):
    """One of its processes, or the coordinator and another one, anywhere: it goes back, or on."""
    rng = random.Random(SEED)
    scene.note(f"seed {SEED}")
    went, killed = 0, dict.fromkeys(("coordinator", "destination", "worker", "server"), 0)
    for _ in range(KILLS):
        move = Move(s, a, images)
        move.start()
        move.coordinator()
        time.sleep(rng.uniform(0, 2.5))
        kinds = [rng.choice(list(killed))] + ["coordinator"] * (rng.random() < 0.2)
        for kind in kinds:
            pid = victim(move, kind, rng.choice(NUMBERS))
            if pid is not None:
                try:
                    os.kill(pid, signal.SIGKILL)
                    killed[kind] += 1
                except ProcessLookupError:
                    pass
        move.end(0, 1, 3)
        if move.process.returncode == 0:
            a, images = move.arrived()
            went += 1
        else:
            move.stayed()
    scene.note(f"{went} of {KILLS} went on; killed: {killed}")
    return a, images


def test(s):
    images = [s.make_disk(f"disk{n}.img", data=4 * scene.MIB) for n in NUMBERS]
    a = s.vm("a", [raw_node(image, n) for n, image in enumerate(images)], recorder="-l 200")
    s.story.wait_for_record(20)
    for part in (failures, there, by_a_hook, *[kills] * scene.LONG):
        start = time.monotonic()
        a, images = part(s, a, images)
        scene.note(f"{part.__name__}: {time.monotonic() - start:.1f} s")
    s.story.wait_for_line("LOADED")  # else some blocks were never written
    a.shut_down()
    s.check_story()
    s.check_clean(*images)
    s.check_records(s.story.last, *images, blocks=True)


scene.main(test, 900 + 30 * KILLS if scene.LONG else 600)
