#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that whatever fails at whatever step of a migration, the guest goes on at exactly one side
and no record that it acknowledged is lost: destination QEMU killed, destination's export killed,
worker killed, migration cancelled behind our back, coordinator or its guardian killed, or both
(only then `migrate --recover`), or interrupted, memory that does not converge, source QEMU killed
when all of it had arrived.

One guest (in the long form with one disk or two) goes through all cases in turn as long as it stays
at the source: what a failure leaves behind is found by the next. In the long form
(NBDMIRROR_LONG=1): FAULT_RUNS (200) runs of a random fault at a random step, either exactly then or
up to 60 ms later, while everything goes on; SEED repeats one. FAULT=worker@held is that alone."""

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
from moves import Move, receive  # noqa: E402

# In their order. Up to "committed" the way leads back, from there on forward, unless the
# destination never ran.
STEPS = [
    "mirror",
    "memory",
    "pre-switchover",
    "held",
    "continued",
    "completed",
    "committed",
     "started"]


def at(move, step, action):
    """Do ACTION at STEP.  Those that are commands and events wait for it."""
    tables = {
        "memory": (move.source.after, "migrate"), "pre-switchover": (move.source.event,
                                                                     "pre-switchover"),
        "held": (move.source.before, "migrate-continue"), "continued": (move.source.after,
                                                                        "migrate-continue"),
        "completed": (move.source.event, "completed"), "committed": (move.dest.before, "cont"),
        "started": (move.dest.after, "cont"),
    }
    if step == "mirror":
        def when_copying():
            s, (server, _) = move.s, move.pairs[-1]
            try:
                s.wait_for("the worker", lambda: s.status(server)["state"] == "copying", 20)
                action()
            except scene.Failed as e:
                move.source.errors.append(str(e))
        move.beside = threading.Thread(target=when_copying, daemon=True)
        return
    table, name = tables[step]
    table[name] = action


class Case:
    """One fault at one step."""

    def __init__(self, fault, step, *options, delay=None, disk=-1):
        self.fault, self.step, self.options = fault, step, options
        self.delay, self.disk, self.stopped = delay, disk, []

    def __str__(self):
        late = "" if self.delay is None else f" {self.delay * 1000:.0f} ms later"
        return f"{self.fault} at {self.step}{late}"

    def act(self):
        getattr(self, self.fault.replace("-", "_"))()

    def action(self):
        if self.delay is None:
            self.act()
            return
        timer = threading.Timer(self.delay, self.act)
        timer.daemon = True
        timer.start()

    # ---- faults ----

    def dest_qemu(self):
        self.b.process.kill()
        self.b.process.wait()

    def source_qemu(self):
        self.a.process.kill()
        self.a.process.wait()

    def export(self):
        for pid in children(self.dests[self.disk].pid):
            kill(pid)

    def receiver(self):
        pid = self.dests[self.disk].pid
        for pid in [pid, *children(pid)]:
            kill(pid)

    def worker(self):
        pid = self.s.status(self.sources[self.disk])["worker-pid"]
        if pid:
            kill(pid)

    def stopped_worker(self):
        pid = self.s.status(self.sources[self.disk])["worker-pid"]
        if pid:
            kill(pid, signal.SIGSTOP)
            self.s.at_end.append(lambda: kill(pid))

    def cancel(self):
        try:
            machine.Qmp.__call__(self.a.qmp, "migrate_cancel")
        except machine.QmpError:
            pass

    def coordinator(self):
        for pid in children(self.move.process.pid):
            kill(pid)

    def stopped_coordinator(self):
        for pid in children(self.move.process.pid):
            kill(pid, signal.SIGSTOP)
            self.stopped.append(pid)

    def continue_late_one(self):
        """One that was stopped when the guest ran at the destination already holds nobody up: the
        guardian leaves it alone, as long as somebody likes."""
        self.s.wait_for("the end of a stopped coordinator, or of its work",
                        lambda: self.move.process.poll() is not None or self.move.is_done(), 90)
        for pid in self.stopped:
            kill(pid, signal.SIGCONT)

    def guardian(self):
        self.orphans = children(self.move.process.pid)
        self.move.process.kill()

    def both(self):
        self.move.process.send_signal(signal.SIGSTOP)
        self.coordinator()
        self.move.process.kill()

    def interrupt(self):
        self.move.process.send_signal(signal.SIGINT)

    def nothing(self):
        pass

    # ---- one run ----

    def run(self, s, number, sources, a):
        """Returns the machine where the guest goes on."""
        self.s, self.sources, self.a = s, sources, a
        self.dests = [
    receive(
        s,
        f"{src.name}-{number}",
        os.path.getsize(
            src.disk)) for src in sources]
        self.b = s.vm(f"b{number}", [dst.guest for dst in self.dests],
                      incoming=True, reconnect_delay=10)
        self.move = Move(s, a, self.b, [(src, dst.uri)
                         for src, dst in zip(sources, self.dests)], *self.options)
        at(self.move, self.step, self.action)
        self.move.start()
        if self.step == "mirror":
            self.move.beside.start()
        self.text, self.orphans = "", []
        if self.fault == "stopped-coordinator":
            self.continue_late_one()
        self.status = self.move.wait()
        if self.status == -signal.SIGKILL and self.fault == "both":
            self.status, self.text = self.move.recover()
        elif self.status == -signal.SIGKILL:
            s.wait_for("the orphaned coordinator's end",
                       lambda: not any(map(lives, self.orphans)), 60)
            self.status = [e["exit-status"]
                for e in self.move.events() if e["event"] == "report"][-1]
        self.s.at_end += [dst.stdout.close for dst in self.dests]
        if self.fault == "dest-qemu" and self.was_started():
            return self.crashed_there()
        here = self.move.settled()
        self.check(here)
        return here

    def was_started(self):
        """Before it was killed there, since that may come later than the step."""
        return any(e["event"] == "qmp-event" and e["name"] == "RESUME"
                   and e["side"] == "destination"
                   for e in self.move.events())

    def crashed_there(self):
        """It was killed where it had to run: it may not run anywhere else, and its disks have what
        it told."""
        scene.check(
    not self.a.running,
     "the source runs although the guest was started at the destination")
        for src in self.sources:
            scene.check(self.s.status(src)["gate"] == "fenced", f"{src.disk} is not fenced")
        self.s.check_records(self.s.story.last, *[dst.disk for dst in self.dests])
        self.b.crashed = True
        return self.b

    def check(self, here):
        want = "open" if here is self.a else "fenced"
        for src in self.sources:
            gate = self.s.status(src)["gate"]
            scene.check(
    gate == want,
     f"the guest is at {here.name}, and the gate of {src.disk} is {gate}")
            if here is self.b:
                self.s.check_refuses(src)
        scene.check((self.status == 0) == (here is self.b) or self.text,
                    f"exit status {self.status}, and the guest is at {here.name}")

    def left_over(self):
        """Both killed: that leaves the mirrors at work. They must not be taken for those to another
        place."""
        other = Move(self.s, self.a, self.s.vm("other", self.sources, incoming=True),
                     [(src, self.s.path(src.name + "-no.img")) for src in self.sources])
        other.start()
        status = other.wait()
        scene.check(status == 7, f"a mirror to another place: exit status {status} instead of 7")
        self.s.machines.pop().remove()
        for src in self.sources:
            self.s.nbdmirror("cancel", src.control, status=None)

    def clean_up(self):
        """The destination, after the guest went on at the source."""
        self.b.remove()
        self.s.machines.remove(self.b)
        for function in (self.move.source.close, self.move.dest.close,
                         *(dst.stdout.close for dst in self.dests)):
            function()  # two hundred cases have many descriptors
        if any(self.s.status(src)["state"] not in ("idle", "cancelled", "failed")
               for src in self.sources):
            self.left_over()
        for dst in self.dests:
            if dst.poll() is None:
                dst.send_signal(signal.SIGINT)
                self.s.wait_exit(dst, 20)
            if os.path.exists(dst.disk):
                os.unlink(dst.disk)


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as f:
            return [int(n) for n in f.read().split()]
    except FileNotFoundError:
        return []


def lives(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def kill(pid, number=signal.SIGKILL):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


SLOW_MEMORY = ("--memory-bandwidth", "1M", "--timeout", "4s")
SLOW_DISK = ("--bandwidth", "4M")
SHORT = [
    Case("worker", "mirror", *SLOW_DISK), Case("cancel",
         "memory"), Case("nothing", "memory", *SLOW_MEMORY),
    Case("dest-qemu", "memory"), Case("interrupt", "pre-switchover"), Case("dest-qemu", "held"),
    Case("dest-qemu", "continued"), Case("export",
         "held"), Case("worker", "held"), Case("cancel", "held"),
    Case(
    "coordinator", "held"), Case(
        "guardian", "held"), Case(
            "both", "continued"), Case(
                "dest-qemu", "committed"),
    Case("coordinator", "committed"),
]
FAULTS = {
    "dest-qemu": STEPS[:-1], "export": STEPS[:6], "receiver": STEPS[:5], "worker": STEPS,
    "stopped-worker": STEPS[:6],
    "cancel": STEPS[:6], "coordinator": STEPS, "stopped-coordinator": STEPS[2:7],
    "guardian": STEPS, "both": STEPS, "interrupt": STEPS, "source-qemu": STEPS[5:],
    "nothing": STEPS[1:2],
}


class Guest:
    """A source with its running guest, for as long as that stays there."""

    def __init__(self, s, disks):
        self.s = s
        s.forget()
        self.sources = [
    s.serve(
        f"d{n}",
        s.make_disk(
            f"d{n}.img",
            data=8 *
             scene.MIB)) for n in range(disks)]
        for n, src in enumerate(self.sources):
            src.name = f"d{n}"
        self.a = s.vm("a", self.sources, recorder="-l 100")
        s.story.wait_for_line("LOADED")

    def end(self, here, disks):
        """Also: all disks are of one instant."""
        if getattr(here, "crashed", False):
            return
        here.shut_down()
        self.s.check_story()
        self.s.check_clean(*disks)
        self.s.check_records(self.s.story.last, *disks, blocks=True)


def run_cases(s, cases, disks=lambda: 1):
    guest, results = None, {}
    for number, case in enumerate(cases):
        if guest is None:
            guest = Guest(s, disks())
        began = time.monotonic()
        here = case.run(s, number, guest.sources, guest.a)
        side = "source" if here is guest.a else "destination"
        results[side] = results.get(side, 0) + 1
        scene.note(f"{number + 1}: {case}: exit status {case.status}, the guest is at the {side}, "
                   f"{time.monotonic() - began:.1f} s")
        if here is guest.a:
            case.clean_up()
        else:
            guest.end(here, [dst.disk for dst in case.dests])
            guest = None
    if guest is not None:
        guest.end(guest.a, [src.disk for src in guest.sources])
    scene.note(f"{len(cases)} runs, " + ", ".join(f"{n} ended at the {side}" for side,
                                                  n in results.items())
               + "; one guest each time, and no record lost")


def random_cases(count, seed):
    rng = random.Random(seed)
    for _ in range(count):
        fault = rng.choice(list(FAULTS))
        step = rng.choice(FAULTS[fault])
        options = SLOW_MEMORY if fault == "nothing" else SLOW_DISK if step == "mirror" else ()
        if fault == "receiver":
            # it never comes back: without a time limit the mirror would wait for it
            options += ("--timeout", "10s")
        if fault == "stopped-coordinator":
            options += ("--switchover-timeout", "3s")
        delay = rng.choice([None, rng.uniform(0, 0.06)])
        if fault in ("export", "receiver") and step not in ("mirror", "memory"):
            delay = None  # else the guest's own disk may be hit, after the commit
        yield Case(fault, step, *options, delay=delay, disk=rng.choice([0, -1]))


def test(s):
    one = os.environ.get("FAULT")
    if one:
        fault, _, step = one.partition("@")
        run_cases(s, [Case(fault, step)
                  for _ in range(int(os.environ.get("FAULT_RUNS", "3")))], lambda: 2)
        return
    if not scene.LONG:
        run_cases(s, SHORT)
        return
    seed = int(os.environ.get("SEED", time.time()))
    scene.note(f"SEED={seed}")
    rng = random.Random(seed)
    run_cases(s, list(random_cases(int(os.environ.get("FAULT_RUNS", "200")), seed)),
              lambda: rng.choice([1, 2]))


scene.main(test, 7200 if scene.LONG else 600)
