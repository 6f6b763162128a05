#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Black-box test of the filter's throttled and synchronous gate; the test plays the worker, a good
one, a dead, a stopped and a mute one: no wait is longer than it may be, a worker that does nothing
costs one delay in all, and whatever ends the waiting, no write fails and the server lives.
measures_times

usage: filter-pace.py [-v] [NAME...]      (from the build directory, or with $builddir)
"""
import errno
import os
import random
import signal
import subprocess
import sys
import time

try:
    import nbd
except ImportError:
    print("SKIP: %s has no nbd module" % sys.executable)
    sys.exit(77)

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from filter_client import BLOCK, Refused, Region, Server, Word, run_tests  # noqa: E402

TESTS = []
FOREVER_MS = 60000      # the longest delay that can be set
SOON = 20               # seconds; far less than that


def test(f):
    TESTS.append(f)
    return f


def attach(s, **args):
    w = s.client()
    w.call("mirror-attach", **args)
    region = Region(w.fds.pop())
    region.clean()
    return w, region


def gate(w, mode, delay_ms=FOREVER_MS, **args):
    w.call("mirror-gate", mode=mode, max_write_delay_ms=delay_ms, **args)


class Requests:
    """Requests of a guest that are answered some day."""

    def __init__(self, h):
        self.h = h
        self.results = []
        self.sent = 0

    def _done(self, error):
        self.results.append(error.value)
        return 1

    def write(self, block, flags=0):
        self.sent += 1
        self.h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"w" * BLOCK)), block * BLOCK,
                          completion=self._done, flags=flags)
        return self

    def send(self, method, *args):
        self.sent += 1
        getattr(self.h, "aio_" + method)(*args, completion=self._done)
        return self

    def wait(self, timeout=SOON):
        """All are answered -> the results in the order of the answers; None if they are not in
        time."""
        end = time.monotonic() + timeout
        while len(self.results) < self.sent:
            left = end - time.monotonic()
            self.h.poll(max(0, int(left * 1000)))
            if left <= 0 and len(self.results) < self.sent:
                return None
        return self.results


def eventually(what, f, timeout=SOON):
    end = time.monotonic() + timeout
    while not f():
        assert time.monotonic() < end, "waited in vain: " + what
        time.sleep(0.005)


def waiting(region, n=1):
    eventually("%d requests posted" % n, lambda: len(region.urgent()) == n)


def refused(f, *args, **kwargs):
    try:
        f(*args, **kwargs)
    except Refused as e:
        return e.class_
    raise AssertionError("not refused")


class WorkerProcess:
    """A worker in a process of its own, to be killed or stopped, that answers if told to."""

    def __init__(self, s, answers, delay_ms):
        code = """if 1:
            import sys, time
            sys.path.insert(0, %r)
            from filter_client import Client, Region
            w = Client(%r)
            w.call("mirror-attach")
            r = Region(w.fds.pop())
            r.clean()
            w.call("mirror-gate", mode="synchronous", max_write_delay_ms=%r)
            print("ready", flush=True)
            while True:
                r.serve(0.05) if %r else time.sleep(3600)
                r.move()
            """ % (os.path.dirname(os.path.abspath(__file__)), s.control, delay_ms, answers)
        self.process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                                        text=True)
        s.others.append(self.process)
        assert self.process.stdout.readline() == "ready\n"

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


# ---- what waits for what ----

@test
def arguments_and_status():
    """Bad arguments are refused, good ones are shown in the status and in events."""
    s = Server()
    s.guest()
    k = s.client()
    assert refused(k.call, "mirror-gate", mode="open") == "GenericError"        # no worker
    w, region = attach(s)
    for bad in ({}, {"mode": "held"}, {"mode": "throttled"}, {"mode": "throttled",
                                                              "dirty_limit": 0},
                {"mode": "synchronous", "max_write_delay_ms": 0},
                {"mode": "synchronous", "max_write_delay_ms": 60001},
                {"mode": "synchronous", "max_write_delay_ms": "1"}, {"mode": "open",
                                                                     "nonsense": 1}):
        assert refused(w.call, "mirror-gate", **bad) == "GenericError", bad
    assert refused(w.call, "mirror-progress", **{"missed-writes": 0}) == "GenericError"
    status = k.status()
    assert status["gate"] == "open"
    assert status["synchronised"] is False and status["dirty-limit"] is None
    assert status["max-write-delay-ms"] == 50
    assert status["delayed-writes"] == status["missed-writes"] == 0
    w.call("mirror-gate", mode="throttled", dirty_limit=12345)
    assert k.event("MIRROR_GATE")["gate"] == "throttled"
    status = k.status()
    assert status["gate"] == "throttled" and status["dirty-limit"] == 12345, status
    w.call("mirror-gate", mode="synchronous", max_write_delay_ms=70.5)
    assert k.event("MIRROR_GATE")["gate"] == "synchronous"
    status = k.status()
    assert status["gate"] == "synchronous" and status["dirty-limit"] is None
    assert status["max-write-delay-ms"] == 70.5 and status["synchronised"] is False
    region.catch_up()
    assert k.event("MIRROR_SYNCHRONISED")["synchronised"] is True
    # A hold hides the mode and does not end it.
    generation = w.call("mirror-hold", lease_ms=20000)["generation"]
    assert k.event("MIRROR_GATE")["gate"] == "held" and k.status()["gate"] == "held"
    w.call("mirror-unhold", generation=generation)
    assert k.event("MIRROR_GATE")["gate"] == "synchronous" and k.status()["synchronised"] is True
    w.call("mirror-gate", mode="open")
    assert k.event("MIRROR_GATE")["gate"] == "open"
    assert k.event("MIRROR_SYNCHRONISED")["synchronised"] is False
    assert k.status()["max-write-delay-ms"] == 70.5
    s.close()


@test
def each_kind_waits():
    """WRITE, ZERO, TRIM, FLUSH and FUA wait for their own answer, READ for nothing; each asks for
    the blocks it touched."""
    s = Server(size=100 * BLOCK - 100)
    h = s.guest()
    w, region = attach(s)
    gate(w, "synchronous")
    region.catch_up()
    for method, args, asked in (
            ("pwrite", (nbd.Buffer.from_bytearray(bytearray(2)), BLOCK - 1), (1, 0, 2)),
            ("pwrite", (nbd.Buffer.from_bytearray(bytearray(100)), 99 * BLOCK + 1), (1, 99, 1)),
            ("zero", (3 * BLOCK, 10 * BLOCK), (1, 10, 3)),
            ("trim", (BLOCK, 20 * BLOCK + 1), (1, 20, 2)),
            ("flush", (), (2, 0, 0))):
        r = Requests(h).send(method, *args)
        waiting(region)
        assert h.pread(BLOCK, 0) and r.wait(0.05) is None, "%s did not wait" % method
        (slot, request), = region.urgent().items()
        assert request == asked, (method, request)
        assert asked[0] == 2 or region.blocks("dirty") >= set(range(asked[1], asked[1] + asked[2]))
        region.move()
        region.answer(slot)
        assert r.wait() == [0]
    r = Requests(h).write(5, nbd.CMD_FLAG_FUA)
    waiting(region)
    (slot, request), = region.urgent().items()
    assert request == (3, 5, 1), request
    status = w.status()
    assert status["in-flight"] == 0 and status["missed-writes"] == 0
    assert status["synchronised"] is True
    # "Late": it goes on at once, and is missing at the destination.
    region.answer(slot, False)
    assert r.wait() == [0]
    status = w.status()
    assert status["missed-writes"] == 1 and status["delayed-writes"] == 6, status
    assert not status["synchronised"], status
    k = s.client()
    region.catch_up()
    assert k.event("MIRROR_SYNCHRONISED")["synchronised"] is True
    s.close()


# ---- time ----

@test
def bounded():
    """A worker that is busy with other things and never answers: each write waits its time, no
    longer; the disk is not synchronised any more, which is told."""
    s = Server()
    h = s.guest()
    w, region = attach(s)
    gate(w, "synchronous", 150)
    region.catch_up()
    k = s.client()
    eventually("synchronised", lambda: k.status()["synchronised"])
    for i in range(3):
        r = Requests(h).write(i)
        begin = time.monotonic()
        while r.wait(0.01) is None:
            region.move()
        assert r.results == [0]
        assert 0.14 < time.monotonic() - begin < 5
        if i == 0:
            assert k.status()["synchronised"] is False
            assert k.event("MIRROR_SYNCHRONISED", synchronised=False)
    status = k.status()
    assert status["missed-writes"] == status["delayed-writes"] == 3
    assert 150 <= status["longest-write-delay-ms"] < 5000, status
    s.close()


@test
def mute_worker_costs_one_delay():
    """Nothing moves: 16 writers on each of 2 connections wait once, together, and 160 more writes
    do not.  When something moves again they wait again."""
    s = Server()
    guests = [s.guest(), s.guest()]
    w, region = attach(s)
    gate(w, "synchronous", 2000)
    begin = time.monotonic()
    for i in range(6):
        requests = [Requests(h) for h in guests]
        for r in requests:
            for b in range(16):
                r.write(16 * i + b)
        for r in requests:
            assert r.wait() == [0] * 16
    took = time.monotonic() - begin
    assert 1.99 < took < 3.8, "%.3f s" % took
    assert w.status()["missed-writes"] == 6 * 32, w.status()
    region.move()
    r = Requests(guests[0]).write(1)
    waiting(region)
    region.serve(SOON, lambda: r.wait(0) is not None)
    assert r.wait() == [0]
    assert w.status()["missed-writes"] == 6 * 32, "the last one was answered"
    s.close()


@test
def stopped_worker():
    """The same with a worker that works and is then stopped; and it goes on."""
    s = Server()
    h = s.guest()
    w = WorkerProcess(s, True, 1500)
    k = s.client()
    for i in range(20):
        h.pwrite(b"x" * BLOCK, i * BLOCK)
    assert k.status()["delayed-writes"] == 20
    w.process.send_signal(signal.SIGSTOP)
    missed = k.status()["missed-writes"]
    begin = time.monotonic()
    for i in range(40):
        h.pwrite(b"x" * BLOCK, i * BLOCK)
    took = time.monotonic() - begin
    assert took < 2.8, "%.3f s" % took
    assert k.status()["missed-writes"] == missed + 40
    w.process.send_signal(signal.SIGCONT)

    def answered():
        before = k.status()["missed-writes"]
        h.pwrite(b"x" * BLOCK, 0)
        return k.status()["missed-writes"] == before
    eventually("a write is answered", answered)
    w.end()
    eventually("open", lambda: k.status()["gate"] == "open")
    s.close()


@test
def throttled():
    """The limit is kept; rewrites are free; a single write waits no longer than it may."""
    s = Server(size=64 << 20)
    h = s.guest()
    w, region = attach(s)
    limit = 4 << 20
    gate(w, "throttled", 50, dirty_limit=limit)
    begin = time.monotonic()
    block = 0
    while time.monotonic() < begin + 1.5:
        r = Requests(h)
        for _ in range(8):
            r.write(block)
            block += 1
        region.move()
        assert r.wait() == [0] * 8
    rate = block * BLOCK / (time.monotonic() - begin)
    assert 0.4 * limit < rate < 1.1 * limit, "%.0f of %d bytes/s" % (rate, limit)
    assert region.counter("dirty") == block
    status = w.status()
    assert status["delayed-writes"] > 10 and status["missed-writes"] == 0, status
    gate(w, "throttled", FOREVER_MS, dirty_limit=1)
    for i in range(200):
        h.pwrite(b"x" * BLOCK, i * BLOCK)
    h.flush()
    delayed = w.status()["delayed-writes"]
    gate(w, "throttled", 300, dirty_limit=1)
    begin = time.monotonic()
    h.pwrite(b"x" * BLOCK, block * BLOCK)
    took = time.monotonic() - begin
    assert 0.29 < took < SOON, f"{took:.3f} s"
    assert w.status()["delayed-writes"] == delayed + 1
    # In vain: nothing is copied.
    gate(w, "throttled", FOREVER_MS, dirty_limit=1)
    r = Requests(h).write(block + 1)
    begin = time.monotonic()
    assert r.wait(10) == [0] and time.monotonic() - begin < 8
    s.close()


# ---- what ends the waiting ----

@test
def mode_changes():
    """Open and throttled release who waits."""
    for args in ({"mode": "open"}, {"mode": "throttled", "dirty_limit": 1 << 30}):
        s = Server()
        h = s.guest()
        w, region = attach(s)
        gate(w, "synchronous")
        r = Requests(h).write(1).write(2).send("flush")
        waiting(region, 3)
        w.call("mirror-gate", **args)
        assert r.wait() == [0] * 3
        assert w.status()["missed-writes"] == 0
        gate(w, "throttled", dirty_limit=1)
        r = Requests(h).write(50)
        assert r.wait(0.1) is None
        region.move()
        w.call("mirror-gate", mode="open")
        assert r.wait() == [0]
        s.close()


@test
def worker_killed():
    """Killed, or its connection closed: who waits goes on, the gate is open, the next worker
    resumes."""
    s = Server()
    h = s.guest()
    w = WorkerProcess(s, False, FOREVER_MS)
    k = s.client()
    r = Requests(h).write(1).write(2, nbd.CMD_FLAG_FUA).send("flush")
    assert r.wait(0.2) is None
    w.end()
    assert r.wait() == [0] * 3
    assert k.event("MIRROR_GATE", gate="open")
    assert k.status()["state"] == "detached"
    w, region = attach(s, start="resume")
    assert k.status()["gate"] == "open"
    gate(w, "synchronous")
    r = Requests(h).write(1)
    waiting(region)
    s.clients.remove(w)
    w.close()
    assert r.wait() == [0]
    s.close()


@test
def region_dropped():
    """Cancelled while they wait, ten times: the region is gone at once, and nobody notices."""
    s = Server()
    h = s.guest()
    for i in range(10):
        w, region = attach(s)
        gate(w, "synchronous")
        r = Requests(h)
        for b in range(8):
            r.write(b)
        if i % 2:
            waiting(region, 8)
        w.call("mirror-detach", state="cancelled")
        assert r.wait() == [0] * 8
        assert w.status()["dirty-bytes"] is None
        s.clients.remove(w)
        w.close()
    s.close()


@test
def server_stops():
    """SIGTERM while they wait: they are answered, and the server ends."""
    for mode in "synchronous", "throttled":
        s = Server()
        h = s.guest()
        w, region = attach(s)
        gate(w, mode, dirty_limit=1)
        r = Requests(h).write(0)
        if mode != "synchronous":
            r.write(1).write(2)
        assert r.wait(0.2) is None
        with s.terminating():
            assert w.closed()
        assert r.wait() == [0] * r.sent
        s.cut(h)
        assert s.ends_by_itself()
        s.close()


# ---- with the gate ----

@test
def hold_does_not_wait_for_them():
    """Who waits at the pace is not in flight: the drain is done at once; they are answered while
    the gate is held."""
    s = Server()
    h = s.guest()
    w, region = attach(s)
    gate(w, "synchronous")
    r = Requests(h).write(1).write(2)
    waiting(region, 2)
    begin = time.monotonic()
    generation = w.call("mirror-hold", lease_ms=30000)["generation"]
    assert time.monotonic() - begin < SOON
    held = Requests(h).write(3)
    assert held.wait(0.1) is None and len(region.urgent()) == 2
    region.serve(SOON, lambda: r.wait(0) is not None)
    assert r.results == [0, 0] and held.wait(0) is None
    w.call("mirror-unhold", generation=generation)
    waiting(region)
    region.serve(SOON, lambda: held.wait(0) is not None)
    assert held.wait() == [0]
    s.close()


@test
def commit_and_rollback():
    """Committed while they wait: they were done, so they succeed; later ones fail, which is logged
    once. After a rollback all begins again, the log too."""
    s = Server()
    h = s.guest()
    for round_ in 1, 2:
        w, region = attach(s)
        gate(w, "synchronous")
        r = Requests(h).write(1).write(2)
        waiting(region, 2)
        word, k = Word(), s.client()
        answer = k.start("mirror-prepare", fd=word.fd, lease_ms=30000, rollback_token="t")
        request = w.event("MIRROR_REQUEST", execute="prepare")
        generation = w.call("mirror-hold", lease_ms=30000)["generation"]
        region.clean()
        w.call("mirror-prepared", generation=generation, session=w.status()["session"])
        w.call("mirror-reply", **{"request": request["request"],
                                  "return": {"generation": generation}})
        k.finish(answer)
        assert r.wait(0) is None
        word.set(1)
        k.call("job-finalize", generation=generation)
        assert r.wait() == [0, 0]
        assert k.status()["gate"] == "fenced" and k.status()["synchronised"] is False
        assert refused(w.call, "mirror-gate", mode="synchronous") == "Fenced"
        assert Requests(h).write(1).write(2).wait() == [errno.EPERM] * 2
        assert s.log().count("writes are refused until a rollback") == round_, s.log()
        w.call("mirror-detach", state="completed")
        k.call("mirror-rollback", rollback_token="t", destination_stopped=True)
        h.pwrite(b"x" * BLOCK, 0)
        s.clients.remove(w)
        w.close()
    s.close()


@test
def all_at_once():
    """Modes, answers, cancelling and attaching in any order under 3 busy connections: every write
    succeeds."""
    s = Server()
    guests = [s.guest() for _ in range(3)]
    rnd = random.Random(5)
    end = time.monotonic() + (20 if os.environ.get("NBDMIRROR_LONG") else 2)
    requests = [Requests(h) for h in guests]
    while time.monotonic() < end:
        w, region = attach(s)
        for _ in range(rnd.randrange(6)):
            gate(w, rnd.choice(["open", "throttled", "synchronous", "synchronous"]),
                 rnd.choice([1, 5, FOREVER_MS]), dirty_limit=1 << 20)
            for r in requests:
                while r.sent - len(r.results) < 16:
                    r.write(rnd.randrange(200))
            region.serve(rnd.choice([0, 0.002, 0.01]))
            for r in requests:
                r.wait(0.001)
        if rnd.randrange(2):
            w.call("mirror-gate", mode="open")
        w.call("mirror-detach", state="cancelled")
        s.clients.remove(w)
        w.close()
    for r in requests:
        assert set(r.wait()) == {0}
    s.close()


if __name__ == "__main__":
    sys.exit(run_tests(TESTS))
