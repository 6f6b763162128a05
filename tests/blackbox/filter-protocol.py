#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Black-box test of the filter, driven as a worker and a coordinator would drive it: marks, attach
and resume, the gate, the two-phase hand-off, and what happens when any of the parties is lost.

usage: filter-protocol.py [-v] [NAME...]      (from the build directory, or with $builddir)
"""
import errno
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

try:
    import nbd
except ImportError:
    print("SKIP: %s has no nbd module" % sys.executable)
    sys.exit(77)

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from filter_client import (BLOCK, Client, Refused, Region, Server, Word,  # noqa: E402
                           filter_path, run_tests, server_environment)

TESTS = []


def test(f):
    TESTS.append(f)
    return f


def refused(class_, f, *args, **kwargs):
    """F must be refused with that error class; returns the description."""
    try:
        r = f(*args, **kwargs)
    except Refused as e:
        assert e.class_ == class_, "refused with %s instead of %s" % (e, class_)
        return e.desc
    raise AssertionError("not refused: %s" % r)


def eventually(what, f, timeout=20):
    end = time.monotonic() + timeout
    while not f():
        assert time.monotonic() < end, "waited in vain: " + what
        time.sleep(0.005)


def attach(s, **args):
    """A worker in this process: the client and its region."""
    w = s.client()
    info = w.call("mirror-attach", **args)
    region = Region(w.fds.pop())
    return w, region, info


def write_later(h, data, offset, **kwargs):
    """A write that is answered some day.  -> a function that waits for it and returns 0 or its
    errno."""
    result = []

    def done(error):
        result.append(error.value)
        return 1
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset, completion=done, **kwargs)

    def wait(timeout=20):
        end = time.monotonic() + timeout
        while not result:
            left = end - time.monotonic()
            if left < 0:
                return None
            h.poll(int(left * 1000) + 1)
        return result[0]
    return wait


def prepare_all(s, w, word, lease_ms=20000, token="tok-1", coordinator=None, **args):
    """From mirror-prepare to prepared; the region is clean.  -> (coordinator, generation)"""
    k = coordinator or s.client()
    answer = k.start("mirror-prepare", fd=word.fd, lease_ms=lease_ms, rollback_token=token, **args)
    request = w.event("MIRROR_REQUEST", execute="prepare")
    generation = w.call("mirror-hold", lease_ms=request["arguments"]["lease-ms"])["generation"]
    session = w.call("query-mirror")["session"]
    w.call("mirror-prepared", generation=generation, session=session)
    w.call("mirror-reply", **{"request": request["request"], "return": {"generation": generation}})
    assert k.finish(answer) == {"generation": generation}
    return k, generation


def run_nbdkit(*args):
    """-> its exit status and what it wrote; see Server.end about sanitizers."""
    p = subprocess.Popen(["nbdkit", *args], stderr=subprocess.PIPE, text=True,
                         env=server_environment())
    try:
        return p.wait(5), p.stderr.read()
    except subprocess.TimeoutExpired:
        p.kill()
        p.wait()
        assert "LD_PRELOAD" in server_environment(), "nbdkit hangs: %s" % (args,)
        return -1, p.stderr.read()


class WorkerProcess:
    """A worker in a process of its own, to be killed or stopped: attaches, sets the arrays to what
    the tests expect (unless told not to), and holds if asked."""

    def __init__(self, s, start="new", hold_ms=None, assign=True, clear_half=False):
        code = """if 1:
            import sys, time
            sys.path.insert(0, %r)
            from filter_client import Client, Region
            w = Client(%r)
            info = w.call("mirror-attach", start=%r)
            r = Region(w.fds.pop())
            if %r:
                r.assign("dirty", {1}); r.assign("claimed-a", {2, 3}); r.assign("claimed-b", {4})
                r.assign("quarantine", {5})
            if %r:
                r.clear_half("dirty")
            if %r:
                w.call("mirror-hold", lease_ms=%r)
            print("ready", info["session"], flush=True)
            time.sleep(1000)
            """ % (os.path.dirname(os.path.abspath(__file__)), s.control, start, assign, clear_half,
                   hold_ms, hold_ms)
        self.process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE,
                                        text=True)
        s.others.append(self.process)
        assert self.process.stdout.readline().startswith("ready")

    def signal(self, sig):
        self.process.send_signal(sig)

    def kill(self):
        self.process.kill()
        self.process.wait()


# ---- marks ---------------------------------------------------------------------------------

@test
def attach_needs_a_disk():
    """The size is learnt from a client: no attach before one has come."""
    s = Server()
    c = s.client()
    assert "open an NBD connection" in refused("NoDisk", c.call, "mirror-attach", start="new")
    assert s.client().status()["size"] is None
    s.guest()
    w, region, info = attach(s, start="new")
    assert info["size"] == 1 << 20 and info["block-size"] == BLOCK, info
    assert info["resumed"] is False and info["job"] is None and info["session"] == 1
    s.close()


@test
def new_job_is_all_dirty():
    """A full job begins with every block dirty, the short one at the tail included."""
    for size in 0, 1, 511, 513, BLOCK - 1, BLOCK, BLOCK + 1, 300 * BLOCK + 7:
        s = Server(size=size)
        s.guest()
        w, region, info = attach(s, start="new")
        n = (size + BLOCK - 1) // BLOCK
        assert region.blocks("dirty") == set(range(n)), size
        assert region.counter("dirty") == n
        status = s.client().status()
        assert status["session"] == 1
        assert status["dirty-bytes"] == size == status["size"], status
        s.close()


@test
def marks_every_mutation():
    """Write, zero and trim, odd ranges, with FUA, failing: exactly the blocks they touch are
    marked."""
    s = Server(size=100 * BLOCK + 100)
    h = s.guest()
    w, region, info = attach(s, start="new")

    def marked(f, *args):
        region.clean()
        f(*args)
        return sorted(region.blocks("dirty"))
    assert marked(h.pwrite, b"x", 0) == [0]
    assert marked(h.pwrite, b"x" * 2, BLOCK - 1) == [0, 1]
    assert marked(h.pwrite, b"x" * BLOCK, BLOCK) == [1]
    assert marked(h.pwrite, b"x" * (3 * BLOCK), BLOCK // 2, nbd.CMD_FLAG_FUA) == [0, 1, 2, 3]
    assert marked(h.zero, BLOCK + 1, 10 * BLOCK) == [10, 11]
    assert marked(h.zero, 1, 20 * BLOCK + 5, nbd.CMD_FLAG_FUA | nbd.CMD_FLAG_NO_HOLE) == [20]
    assert marked(h.trim, 2 * BLOCK, 30 * BLOCK) == [30, 31]
    assert marked(h.trim, BLOCK, 40 * BLOCK, nbd.CMD_FLAG_FUA) == [40]
    assert marked(h.pwrite, b"x" * 101, 100 * BLOCK - 1) == [99, 100]
    assert marked(h.pread, BLOCK, 0) == []
    assert marked(h.flush) == []
    assert region.counter("dirty") == 0
    s.close()


@test
def marks_failed_writes():
    """A write that failed may have changed part of the range, so it is marked all the same."""
    s = Server(filters=["error"], plugin=["memory", "1M", "error=EIO", "error-pwrite-rate=100%",
                                          "error-zero-rate=100%", "error-trim-rate=100%"])
    h = s.guest()
    w, region, info = attach(s, start="new")
    region.clean()
    for f, args in ((h.pwrite, (b"x", BLOCK)), (h.zero, (BLOCK, 3 * BLOCK)),
                    (h.trim, (BLOCK, 5 * BLOCK))):
        try:
            f(*args)
            raise AssertionError("no error")
        except nbd.Error as e:
            assert e.errnum == errno.EIO
    assert region.blocks("dirty") == {1, 3, 5}
    s.close()


@test
def writes_on_many_connections():
    """Four connections write at once: every block that was written is marked."""
    s = Server(size=1024 * BLOCK)
    handles = [s.guest() for _ in range(4)]
    w, region, info = attach(s, start="new")
    region.clean()

    def work(i):
        for b in range(i, 1024, 8):
            handles[i].pwrite(bytes([i + 1]) * BLOCK, b * BLOCK)
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert region.blocks("dirty") == {b for b in range(1024) if b % 8 < 4}
    assert region.counter("dirty") == 512
    assert s.client().status()["in-flight"] == 0
    s.close()


@test
def refuses_other_exports_and_sizes():
    """One export a server, of one size."""
    s = Server()
    try:
        s.guest("other")
        raise AssertionError("another export was opened")
    except nbd.Error:
        assert "is not the one that is tracked" in s.log()
    s.guest()
    with open(s.disk, "r+b") as f:
        f.truncate(2 << 20)
    try:
        s.guest()
        raise AssertionError("a size that changed was accepted")
    except nbd.Error:
        assert "size changed from 1048576 to 2097152" in s.log(), s.log()
    s.close()
    s = Server(export="disk1")
    s.guest("disk1")
    s.close()


@test
def refuses_bad_parameters():
    """Each bad parameter is named, at start, and leaves nothing behind."""
    s = Server()
    s.hang_up()
    s.end()
    assert not os.path.exists(s.control), "the control socket was left behind"
    f = "--filter=" + filter_path()
    bad = [
        ([f, "memory", "1M"], "mirror-control"),
        ([f, "memory", "1M", "mirror-control=" + s.control, "mirror-state=/dev/null"],
         "not a regular file"),
        ([f, "memory", "1M", "mirror-control=" + s.control, "mirror-state=/dev/shm/x.state"],
         "in memory"),
        ([f, "memory", "1M", "mirror-control=" + s.control, "mirror-state=" + s.disk],
         "it is not a state file"),
        ([f, "memory", "1M", "mirror-control=" + s.control, "mirror-block-size=5k"],
         "mirror-block-size=5k"),
        ([f, "memory", "1M", "mirror-control=" + s.control, "mirror-block-size=2M"],
         "mirror-block-size=2M"),
        ([f, "memory", "1M", "mirror-control=/nonexistent/c"], "/nonexistent/c"),
        ([f, "memory", "1M", "mirror-control=" + s.disk], s.disk),
        ([f, "--filter=noparallel", "memory", "1M", "mirror-control=" + s.control],
         "mirror-serialized=yes"),
        ([f, "--filter=noparallel", "memory", "1M", "serialize=connections",
          "mirror-serialized=yes", "mirror-control=" + s.control], "one connection at a time"),
        ([f, "memory", "1M", "mirror-control=" + s.control, "mirror-serialized=perhaps"],
         "perhaps"),
        ([f, f, "memory", "1M", "mirror-control=" + s.control], "only once"),
        ([f, "--filter=error", "memory", "1M", "mirror-control=" + s.control, "error-rate=x"], "x"),
        ([f, "memory", "1M", "mirror-nonsense=1", "mirror-control=" + s.control],
         "mirror-nonsense"),
    ]
    for args, text in bad:
        status, stderr = run_nbdkit("-f", "-U", s.dir + "/s", *args)
        assert status != 0 and text in stderr, (args, stderr)
        assert not os.path.exists(s.control), args
    s.close()


# ---- workers come and go -------------------------------------------------------------------

@test
def second_worker_is_refused():
    """While one is attached, and while the process of one that was cut off exists."""
    s = Server()
    s.guest()
    w, region, info = attach(s, start="new")
    assert str(os.getpid()) in refused("WorkerAttached", s.client().call, "mirror-attach",
                                       start="resume")
    w.close()
    begin = time.monotonic()
    assert "still exists" in refused("WorkerAttached", s.client().call, "mirror-attach",
                                     start="resume")
    assert time.monotonic() - begin > 1
    s.close()


@test
def resume_takes_over_what_the_dead_worker_knew():
    """Dirty, claimed and quarantine are dirty again, claimed and quarantine are in quarantine, the
    session is one higher; what the guest writes meanwhile is there too; the job's counters are
    handed on."""
    s = Server()
    h = s.guest()
    p = WorkerProcess(s)
    h.pwrite(b"x", 100 * BLOCK)
    p.kill()
    eventually("the worker's loss", lambda: s.client().status()["worker"] == "detached")
    h.pwrite(b"x", 101 * BLOCK)
    refused("JobExists", s.client().call, "mirror-attach", start="new")
    w, region, info = attach(s, start="resume")
    assert info["resumed"] is True and info["session"] == 2, info
    assert s.client().status()["session"] == 2
    assert info["job"]["state"] == "copying"
    assert region.blocks("dirty") == {1, 2, 3, 4, 5, 100, 101}, region.blocks("dirty")
    assert region.blocks("quarantine") == {2, 3, 4, 5}
    assert not region.blocks("claimed-a") and not region.blocks("claimed-b")
    for a, n in ("dirty", 7), ("claimed-a", 0), ("claimed-b", 0), ("quarantine", 4):
        assert region.counter(a) == n, (a, region.counter(a))
    h.pwrite(b"x", 102 * BLOCK)
    assert 102 in region.blocks("dirty")
    s.close()


@test
def half_a_clear_ends_with_its_worker():
    """Killed within a clear, a worker leaves a summary that may lack a bit.  Its left-over job can
    be looked at all the same, and lacks nothing."""
    s = Server()
    s.guest()
    c = s.client()
    p = WorkerProcess(s, clear_half=True)
    assert "too busy" in refused("GenericError", c.call, "query-mirror-map")
    p.kill()

    def look():
        try:
            return c.call("query-mirror-map")["blocks"]
        except Refused:
            return None
    eventually("a look at the left-over job", look)
    assert os.pread(c.fds.pop(), 32, 0) == (0b111110).to_bytes(32, "little")
    s.close()


@test
def restart_begins_again():
    """restart: all dirty, session 1; but blocks that the dead worker's requests may still hit stay
    in quarantine (R12).  The same for a job that was dropped and begun anew."""
    s = Server()
    s.guest()
    WorkerProcess(s).kill()
    eventually("the worker's loss", lambda: s.client().status()["worker"] == "detached")
    p = WorkerProcess(s, start="restart")
    p.kill()
    w, region, info = attach(s, start="restart")
    assert len(region.blocks("dirty")) == 256 and info["session"] == 1 and not info["resumed"]
    assert region.blocks("quarantine") == {2, 3, 4, 5}
    w.call("mirror-detach", state="cancelled", reason="test")
    w, region, info = attach(s, start="new")
    assert len(region.blocks("dirty")) == 256 and info["session"] == 1
    assert region.blocks("quarantine") == {2, 3, 4, 5}
    s.close()


@test
def cancel_without_a_worker():
    """block-job-cancel drops a left over job; then new is possible, resume finds nothing."""
    s = Server()
    s.guest()
    c = s.client()
    refused("DeviceNotActive", c.call, "block-job-cancel")
    WorkerProcess(s).kill()
    eventually("the worker's loss", lambda: c.status()["worker"] == "detached")
    assert c.status()["state"] == "detached" and len(c.call("query-block-jobs")) == 1
    c.call("block-job-cancel", device="mirror")
    c.event("BLOCK_JOB_CANCELLED")
    status = c.status()
    assert status["state"] == "cancelled" and status["dirty-bytes"] is None, status
    assert c.call("query-block-jobs") == [] == c.call("query-jobs")
    refused("NothingToResume", c.call, "mirror-attach", start="resume")
    w, region, info = attach(s, start="new")
    assert info["resumed"] is False and info["session"] == 1
    s.close()


@test
def requests_are_relayed():
    """A user's request goes to the worker, its answer back; a lost worker answers for all."""
    s = Server()
    s.guest()
    c = s.client()
    refused("DeviceNotActive", c.call, "block-job-pause")
    w, region, info = attach(s, start="new")
    for name, args in (("block-job-set-speed", {"speed": 1000}), ("block-job-pause", {}),
                       ("mirror-set", {"policy": "none"}), ("block-job-complete", {})):
        a = c.start(name, **args)
        request = w.event("MIRROR_REQUEST")
        assert request["execute"] == name and request["arguments"] == args, request
        w.call("mirror-reply", **{"request": request["request"], "return": {"x": 1}})
        assert c.finish(a) == {"x": 1}
    a = c.start("block-job-complete")
    request = w.event("MIRROR_REQUEST")
    w.call("mirror-reply", request=request["request"], error={"class": "NotReady", "desc": "no"})
    assert refused("NotReady", c.finish, a) == "no"
    w.call("mirror-reply", **{"request": request["request"], "return": {}})   # late: ignored
    a = c.start("block-job-pause")
    w.event("MIRROR_REQUEST")
    w.close()
    refused("DeviceNotActive", c.finish, a)
    s.close()


@test
def progress_is_checked():
    """What a worker publishes is checked by type, bounded, and shown with the filter's own
    knowledge."""
    s = Server()
    s.guest()
    refused("GenericError", s.client().call, "mirror-progress", state="ready")
    w, region, info = attach(s, start="new")
    w.call("mirror-progress", **{"state": "ready", "pass": 3, "bandwidth": 1.5,
                                 "target": "nbd://x"})
    status = s.client().status()
    assert status["state"] == "ready" and status["pass"] == 3 and status["target"] == "nbd://x"
    w.event("BLOCK_JOB_READY")
    w.call("mirror-progress", **{"expected-downtime-ms": None})
    for bad in ({"pass": -1}, {"pass": "x"}, {"state": "nonsense"}, {"state": None},
                {"gate": "open"},
                {"session": 3}, {"target": "x" * 5000}, {"other": {"a": 1}}, {"policy": "x"},
                {"converging": 1}, {"eta-s": -2}):
        refused("GenericError", w.call, "mirror-progress", **bad)
    refused("GenericError", w.call, "mirror-progress", **{"f%d" % i: i for i in range(65)})
    refused("GenericError", w.call, "mirror-progress",
            **{"f%d" % i: "\x01" * 200 for i in range(50)})
    assert s.client().status()["pass"] == 3
    jobs = s.client().call("query-block-jobs")
    assert jobs[0]["type"] == "mirror" and jobs[0]["ready"] and jobs[0]["device"] == "mirror", jobs
    s.close()


@test
def bad_commands_are_refused():
    """Wrong names, types and ids are errors that name the thing."""
    s = Server()
    s.guest()
    c = s.client()
    assert "nonsense" in refused("CommandNotFound", c.call, "nonsense")
    assert "'x'" in refused("GenericError", c.call, "query-mirror", x=1)
    assert "'speed'" in refused("GenericError", c.call, "block-job-set-speed", speed="fast")
    assert "'speed'" in refused("GenericError", c.call, "block-job-set-speed", speed=-1)
    assert "'speed'" in refused("GenericError", c.call, "block-job-set-speed")
    assert "'disk2'" in refused("DeviceNotFound", c.call, "query-mirror", id="disk2")
    assert "'disk2'" in refused("DeviceNotFound", c.call, "block-job-pause", device="disk2")
    refused("GenericError", c.call, "mirror-attach", start="nonsense")
    refused("GenericError", c.call, "mirror-set")
    refused("GenericError", c.call, "mirror-set", policy="nonsense")
    names = {x["name"] for x in c.call("query-commands")}
    assert {"qmp_capabilities", "query-mirror", "mirror-attach"} <= names
    assert c.call("query-version")["qemu"]["major"] == 0
    s.close()


class Writers:
    """Guests that write random blocks all the time, each with a connection of its own.  `done` has
    the blocks whose writes were sent and answered since new_epoch(); `sent` those that may have
    been written since then."""

    def __init__(self, s, nr, nr_blocks):
        self.nr_blocks = nr_blocks
        self.stop = False
        self.lock = threading.Lock()
        self.epoch = 0
        self.sent, self.done = set(), set()
        self.current = [None] * nr
        self.errors = []
        handles = [s.guest() for _ in range(nr)]
        self.threads = [threading.Thread(target=self.run, args=(h, i), daemon=True)
                        for i, h in enumerate(handles)]
        for t in self.threads:
            t.start()

    def new_epoch(self):
        """While the gate is held.  -> done, sent"""
        with self.lock:
            before = self.done, self.sent
            self.epoch += 1
            self.done, self.sent = set(), set(self.current) - {None}
            return before

    def run(self, h, i):
        rng = random.Random(i)
        try:
            while not self.stop:
                b = rng.randrange(self.nr_blocks)
                with self.lock:
                    epoch = self.epoch
                    self.current[i] = b
                    self.sent.add(b)
                rng.choice((lambda: h.pwrite(b"x" * 512, b * BLOCK + 100),
                            lambda: h.zero(BLOCK, b * BLOCK), lambda: h.trim(BLOCK, b * BLOCK)))()
                with self.lock:
                    if epoch == self.epoch:
                        self.done.add(b)
        except nbd.Error as e:
            self.errors.append(e)

    def end(self):
        self.stop = True
        for t in self.threads:
            t.join()
        assert not self.errors, self.errors


@test
def marks_under_load():
    """Whenever the gate is held and drained, the region has what was written since it was clean,
    and no more."""
    s = Server(size=4096 * BLOCK)
    s.guest()
    w, region, info = attach(s, start="new")
    writers = Writers(s, 4, 4096)
    for i in range(20):
        generation = w.call("mirror-hold", lease_ms=60000)["generation"]
        if i > 0:
            dirty = region.blocks("dirty")
            done, sent = writers.new_epoch()
            assert done <= dirty, "not marked: %s" % sorted(done - dirty)
            assert dirty <= sent, "marked, but never written: %s" % sorted(dirty - sent)
            assert region.counter("dirty") == len(dirty)
        else:
            writers.new_epoch()
        region.clean()
        w.call("mirror-unhold", generation=generation)
        time.sleep(0.1)
        eventually("writes of the guests", lambda: len(writers.done) > 10)
    writers.end()
    s.close()


@test
def resume_under_load():
    """Workers come and go while guests write: no mark is lost between the old region and the new
    one."""
    s = Server(size=65536 * BLOCK)          # so large that hardly a block is written twice
    s.guest()
    WorkerProcess(s).kill()                 # leaves nearly everything clean behind
    writers = Writers(s, 4, 65536)
    for _ in range(8):
        p = WorkerProcess(s, start="resume", assign=False)
        time.sleep(0.05)
        p.kill()
    w, region, info = attach(s, start="resume")
    writers.end()
    dirty = region.blocks("dirty")
    assert info["session"] == 10 and len(writers.done) > 100
    assert writers.done <= dirty, "not marked: %s" % sorted(writers.done - dirty)
    assert dirty <= writers.sent | {1, 2, 3, 4, 5}, "marked, but never written"
    assert region.counter("dirty") == len(dirty)
    s.close()


# ---- the gate ------------------------------------------------------------------------------

@test
def hold_and_release():
    """While held writes, zeroes and trims wait, reads and flushes and the status pass."""
    s = Server()
    h, reader = s.guest(), s.guest()
    w, region, info = attach(s, start="new")
    h.pwrite(b"a" * BLOCK, 0)
    generation = w.call("mirror-hold", lease_ms=20000)["generation"]
    region.clean()
    writes = [write_later(h, b"b" * BLOCK, i * BLOCK) for i in range(16)]
    eventually("16 waiting writes", lambda: s.client().status()["waiting"] == 16)
    status = s.client().status()
    assert status["gate"] == "held" and status["in-flight"] == 0 and status["state"] == "holding"
    assert reader.pread(BLOCK, 0) == b"a" * BLOCK
    reader.flush()
    begin = time.monotonic()
    for _ in range(100):
        s.clients[0].status()
    assert time.monotonic() - begin < 20, "status is slow while writes wait"
    assert region.blocks("dirty") == set()
    refused("Busy", w.call, "mirror-hold", lease_ms=1000)
    refused("StaleGeneration", w.call, "mirror-unhold", generation=generation + 1)
    w.call("mirror-unhold", generation=generation, reason="test")
    assert [f() for f in writes] == [0] * 16
    w.event("MIRROR_RELEASED", generation=generation)
    assert region.blocks("dirty") == set(range(16))
    assert reader.pread(BLOCK, 0) == b"b" * BLOCK
    refused("StaleGeneration", w.call, "mirror-unhold", generation=generation)
    s.close()


@test
def hold_waits_for_what_is_below():
    """mirror-hold is answered when the requests below are done, and their bits are set then."""
    s = Server(filters=["delay"], plugin=["memory", "1M", "wdelay=1"])
    h = s.guest()
    w, region, info = attach(s, start="new")
    region.clean()
    begin = time.monotonic()
    write = write_later(h, b"x", 7 * BLOCK)
    eventually("the write below", lambda: s.client().status()["in-flight"] == 1)
    w.call("mirror-hold", lease_ms=10000)
    assert time.monotonic() - begin > 0.99, "answered before the write had ended"
    assert region.blocks("dirty") == {7}
    assert write() == 0
    s.close()


@test
def drain_longer_than_the_lease():
    """Then the hold is given up, and said so; the guest goes on."""
    s = Server(filters=["delay"], plugin=["memory", "1M", "wdelay=4"])
    h = s.guest()
    w, region, info = attach(s, start="new")
    write = write_later(h, b"x", 0)
    eventually("the write below", lambda: s.client().status()["in-flight"] == 1)
    begin = time.monotonic()
    refused("LeaseEnded", w.call, "mirror-hold", lease_ms=300)
    assert 0.25 < time.monotonic() - begin
    assert s.client().status()["gate"] == "open"
    assert write() == 0
    s.close()


@test
def lease_ends():
    """A worker that is stopped cannot hold the guest longer than its lease."""
    s = Server()
    h = s.guest()
    begin = time.monotonic()
    p = WorkerProcess(s, hold_ms=1500)
    p.signal(signal.SIGSTOP)
    h.pwrite(b"x", 9 * BLOCK)
    took = time.monotonic() - begin
    assert 1.4 < took < 20, took
    refused("WorkerAttached", s.client().call, "mirror-attach", start="resume")
    p.kill()
    s.close()


@test
def killed_while_holding():
    """The worker's process ends: the guest goes on at once, long before the lease's end."""
    s = Server()
    h = s.guest()
    p = WorkerProcess(s, hold_ms=60000)
    write = write_later(h, b"x", 9 * BLOCK)
    assert write(0.3) is None
    begin = time.monotonic()
    p.kill()
    assert write() == 0
    assert time.monotonic() - begin < 20
    s.close()


@test
def connection_lost_while_holding():
    """The worker's connection closes, its process lives on: the same."""
    s = Server()
    h = s.guest()
    w, region, info = attach(s, start="new")
    w.call("mirror-hold", lease_ms=60000)
    write = write_later(h, b"x", 9 * BLOCK)
    assert write(0.2) is None
    w.close()
    assert write() == 0
    s.close()


@test
def sigterm_while_held():
    """SIGTERM ends the server soon: waiting writes fail, nothing is let through to the disk."""
    s = Server()
    h = s.guest()
    w, region, info = attach(s, start="new")
    c = s.client()
    w.call("mirror-hold", lease_ms=60000)
    write = write_later(h, b"x" * BLOCK, 0)
    assert write(0.2) is None
    with s.terminating():
        w.event("MIRROR_SHUTDOWN")
        c.event("SHUTDOWN")
        assert w.closed() and c.closed()
    assert write() == errno.ESHUTDOWN
    s.cut(h)
    assert s.ends_by_itself()
    with open(s.disk, "rb") as f:
        assert f.read(BLOCK) == bytes(BLOCK), "a write passed the gate"
    assert not os.path.exists(s.control)
    s.close()


@test
def layer_that_is_serialized():
    """mirror-serialized=yes: a hold, the drain and SIGTERM are as ever; only reads wait with the
    write."""
    for serialize, reads in ("requests", True), ("all-requests", False):
        s = Server(filters=["noparallel"], serialized="yes")
        s.hang_up()
        s.end()
        s.plugin.append("serialize=" + serialize)
        s.start()
        h, other = s.guest(), s.guest()
        w, region, info = attach(s, start="new")
        region.clean()
        h.pwrite(b"1" * BLOCK, BLOCK)
        assert region.blocks("dirty") == {1}
        generation = w.call("mirror-hold", lease_ms=60000)["generation"]
        write = write_later(h, b"2" * BLOCK, 0)
        eventually("the write waits", lambda: w.status()["waiting"] == 1)
        buf = nbd.Buffer(BLOCK)
        done = []
        other.aio_pread(buf, BLOCK, completion=lambda error: done.append(error.value) or 1)
        end = time.monotonic() + (20 if reads else 0.3)
        while not done and time.monotonic() < end:
            other.poll(10)
        assert bool(done) == reads, (serialize, done)
        assert w.status()["gate"] == "held"
        w.call("mirror-unhold", generation=generation)
        assert write() == 0
        while not done:
            other.poll(10)
        assert done == [0] and bytes(buf.to_bytearray()) == b"1" * BLOCK
        assert region.blocks("dirty") == {0, 1}

        w.call("mirror-hold", lease_ms=60000)
        write = write_later(h, b"3" * BLOCK, 0)
        assert write(0.2) is None
        with s.terminating():
            assert w.closed()
        assert write() == errno.ESHUTDOWN
        s.cut(h)
        s.cut(other)
        assert s.ends_by_itself()
        with open(s.disk, "rb") as f:
            assert f.read(BLOCK) == b"2" * BLOCK, "a write passed the gate"
        s.close()


@test
def client_leaves_while_its_write_waits():
    """The write of a guest that is gone is not applied later."""
    s = Server()
    h = s.guest()
    s.guest()
    w, region, info = attach(s, start="new")
    generation = w.call("mirror-hold", lease_ms=60000)["generation"]
    write = write_later(h, b"x" * BLOCK, 0)
    assert write(0.2) is None
    s.cut(h)
    eventually("the waiting write's end", lambda: s.client().status()["waiting"] == 0)
    w.call("mirror-unhold", generation=generation)
    with open(s.disk, "rb") as f:
        assert f.read(BLOCK) == bytes(BLOCK), "a dead guest's write passed the gate"
    s.close()


# ---- the hand-off --------------------------------------------------------------------------

@test
def hand_off_and_rollback():
    """Prepared, committed by the word, finalized; writes get EPERM, reads go on, also after a
    restart of the server; the right token opens it again."""
    s = Server()
    h = s.guest()
    h.pwrite(b"a" * BLOCK, 0)
    w, region, info = attach(s, start="new")
    region.clean()
    word = Word()
    k, generation = prepare_all(s, w, word)
    assert s.client().status()["state"] == "prepared"
    waiting = write_later(h, b"b" * BLOCK, 0)
    assert waiting(0.2) is None
    assert "commit" in refused("NotDecided", k.call, "job-finalize", generation=generation)
    refused("StaleGeneration", k.call, "job-finalize", generation=generation + 1)
    assert word.set(1) == 1
    result = k.call("job-finalize", generation=generation)
    assert result["rollback-token"] == "tok-1" and 0 < result["downtime-ms"] < 5000, result
    assert k.call("job-finalize", generation=generation) == result
    w.event("BLOCK_JOB_COMPLETED", device="mirror")
    assert w.event("MIRROR_COMMITTED")["generation"] == generation
    assert waiting() == errno.EPERM
    for f in (lambda: h.pwrite(b"x", 0), lambda: h.zero(512, 0), lambda: h.trim(512, 0)):
        try:
            f()
            raise AssertionError("a fenced disk was changed")
        except nbd.Error as e:
            assert e.errnum == errno.EPERM, e
    assert s.log().count("writes are refused until a rollback") == 1, s.log()
    assert h.pread(BLOCK, 0) == b"a" * BLOCK
    status = s.client().status()
    assert status["state"] == "completed" and status["gate"] == "fenced", status
    assert status["rollback-token"] == "tok-1" and status["downtime-ms"] == result["downtime-ms"]
    c = s.client()
    refused("AlreadyCommitted", c.call, "mirror-release")
    refused("Fenced", c.call, "mirror-attach", start="resume")
    refused("Fenced", c.call, "block-job-complete")
    refused("WrongToken", c.call, "mirror-rollback", rollback_token="no", destination_stopped=True)
    refused("GenericError", c.call, "mirror-rollback", rollback_token="tok-1",
            destination_stopped=False)
    w.call("mirror-detach", state="completed", reason="done")
    assert os.path.exists(s.control + ".fence") and not os.path.exists(s.control + ".fence.draft")

    s.hang_up()
    s.end()
    s.start()
    h = s.guest()
    try:
        h.pwrite(b"x", 0)
        raise AssertionError("a fenced disk was changed after a restart")
    except nbd.Error as e:
        assert e.errnum == errno.EPERM
    c = s.client()
    status = c.status()
    assert status["state"] == "completed" and status["rollback-token"] == "tok-1", status
    assert c.call("job-finalize", generation=generation)["rollback-token"] == "tok-1"
    refused("WrongToken", c.call, "mirror-rollback", rollback_token="no", destination_stopped=True)
    c.call("mirror-rollback", rollback_token="tok-1", destination_stopped=True)
    h.pwrite(b"c" * BLOCK, 0)
    refused("NotFenced", c.call, "mirror-rollback", rollback_token="tok-1",
            destination_stopped=True)
    assert c.status()["state"] == "idle"
    assert not os.path.exists(s.control + ".fence")
    w, region, info = attach(s, start="new")
    assert w.call("mirror-hold", lease_ms=1000)["generation"] > generation
    s.close()


@test
def committed_though_everybody_died():
    """The word says commit, and neither coordinator nor worker is there to tell: fenced all the
    same, durably, without anybody asking."""
    for die in "coordinator", "worker", "nobody":
        s = Server()
        h = s.guest()
        w, region, info = attach(s, start="new")
        region.clean()
        word = Word()
        k, generation = prepare_all(s, w, word)
        word.set(1)
        if die == "coordinator":
            k.close()
        elif die == "worker":
            w.close()
        eventually("the fence record", lambda: os.path.exists(s.control + ".fence"))
        assert s.client().status()["gate"] == "fenced"
        s.close()


@test
def everybody_dies_undecided():
    """A prepared disk loses its coordinator or its worker: the word turns to abort, the gate
    opens."""
    for die in "coordinator", "worker", "release", "unhold", "lease", "other disk":
        s = Server()
        h = s.guest()
        w, region, info = attach(s, start="new")
        region.clean()
        word = Word()
        k, generation = prepare_all(s, w, word, lease_ms=1500 if die == "lease" else 60000)
        assert os.path.exists(s.control + ".fence.draft")
        if die == "coordinator":
            k.close()
        elif die == "worker":
            w.close()
        elif die == "release":
            s.client().call("mirror-release", generation=generation)
        elif die == "unhold":
            w.call("mirror-unhold", generation=generation, reason="test")
        elif die == "other disk":
            word.set(2)
        begin = time.monotonic()
        h.pwrite(b"x", 0)
        assert time.monotonic() - begin < 20, die
        assert word.get() == 2, die
        eventually("the draft's end", lambda: not os.path.exists(s.control + ".fence.draft"))
        assert s.client().status()["gate"] == "open"
        if die != "worker":
            w.event("MIRROR_RELEASED", generation=generation)
            refused("StaleGeneration", w.call, "mirror-prepared", generation=generation, session=1)
            # A late release of what is over does not touch the next hand-off.
            s.client().call("mirror-release", generation=generation)
            refused("StaleGeneration", w.call, "mirror-release", generation=generation + 1)
        if die == "lease":
            refused("StaleGeneration", k.call, "job-finalize", generation=generation)
        s.close()


@test
def prepared_looks_at_everything():
    """mirror-prepared is refused while anything is left, and for another session or generation."""
    s = Server()
    s.guest()
    w, region, info = attach(s, start="new")
    region.clean()
    word = Word()
    k = s.client()
    a = k.start("mirror-prepare", fd=word.fd, lease_ms=60000, rollback_token="t")
    request = w.event("MIRROR_REQUEST", execute="prepare")
    assert request["arguments"]["lease-ms"] == 60000
    refused("StaleGeneration", w.call, "mirror-prepared", generation=1, session=1)
    g = w.call("mirror-hold")["generation"]
    for array in "dirty", "claimed-a", "claimed-b", "quarantine":
        region.assign(array, {200})
        refused("NotEmpty", w.call, "mirror-prepared", generation=g, session=1)
        region.assign(array, ())
    refused("StaleGeneration", w.call, "mirror-prepared", generation=g + 1, session=1)
    refused("StaleSession", w.call, "mirror-prepared", generation=g, session=2)
    # An answer without being prepared is no success.
    w.call("mirror-reply", **{"request": request["request"], "return": {"generation": g}})
    refused("GenericError", k.finish, a)
    assert word.get() == 2 and s.client().status()["gate"] == "open"
    refused("StaleGeneration", w.call, "mirror-prepared", generation=g, session=1)
    s.close()


def arm(s, w, word, coordinator=None, lease_ms=60000, **args):
    """-> the coordinator, of an armed disk"""
    k = coordinator or s.client()
    a = k.start("mirror-prepare", fd=word.fd, lease_ms=lease_ms, rollback_token="tok-1", arm=True,
                **args)
    request = w.event("MIRROR_REQUEST", execute="prepare")
    assert request["arguments"]["arm"] is True, request
    w.call("mirror-reply", **{"request": request["request"], "return": {}})
    assert k.finish(a) == {"armed": True}
    return k


@test
def in_two_steps():
    """Armed: the guest goes on, and the draft is durable.  mirror-prepare-now: where nothing is
    left the disk is prepared without the worker; where something is, the worker copies it."""
    for left in False, True:
        s = Server()
        h = s.guest()
        w, region, info = attach(s, start="new")
        region.clean()
        word = Word()
        refused("GenericError", s.client().call, "mirror-prepare-now")
        k = arm(s, w, word)
        assert s.client().status()["gate"] == "open"
        assert os.path.exists(s.control + ".fence.draft")
        refused("Busy", w.call, "mirror-hold")
        refused("GenericError", s.client().call, "mirror-prepare-now")  # another's hand-off
        h.pwrite(b"a" * BLOCK, 0)
        assert region.blocks("dirty") == {0}, "the guest's write was not marked"
        if not left:
            region.clean()
        a = k.start("mirror-prepare-now")
        if left:
            generation = w.event("MIRROR_HELD")["generation"]
            refused("NotEmpty", w.call, "mirror-prepared", generation=generation, session=1)
            try:
                raise AssertionError("answered although a block is left", k.finish(a, 0.2))
            except TimeoutError:
                pass
            region.clean()
            w.call("mirror-prepared", generation=generation, session=1)
        answer = k.finish(a)
        assert not left or answer == {"generation": generation}, answer
        assert s.client().status()["state"] == "prepared"
        refused("GenericError", k.call, "mirror-prepare-now")
        word.set(1)
        assert k.call("job-finalize", **answer)["rollback-token"] == "tok-1"
        assert w.event("MIRROR_COMMITTED")["generation"] == answer["generation"]
        s.close()


@test
def armed_and_given_up():
    """Whoever dies or gives up while a disk is armed, or held with something left: the word turns
    to abort, the guest goes on, no draft is left, and another hand-off can begin."""
    for die in "coordinator", "worker", "release", "unhold", "other disk", "lease":
        for held in False, True:
            if die == "lease" and not held:
                continue
            s = Server()
            h = s.guest()
            w, region, info = attach(s, start="new")
            region.clean()
            word = Word()
            k = arm(s, w, word, lease_ms=1000 if die == "lease" else 60000)
            if held:
                region.assign("dirty", {7})
                a = k.start("mirror-prepare-now")
                generation = w.event("MIRROR_HELD")["generation"]
            if die == "coordinator":
                k.close()
            elif die == "worker":
                w.close()
            elif die == "release":
                k.call("mirror-release")
            elif die == "unhold":
                w.call("mirror-unhold", generation=0, reason="no room", **{"class": "LeaseEnded"})
                if held:
                    assert refused("LeaseEnded", k.finish, a) == "no room"
            elif die == "other disk":
                word.set(2)
            begin = time.monotonic()
            h.pwrite(b"x", 0)
            assert time.monotonic() - begin < 20, die
            eventually("abort", lambda: word.get() == 2)
            eventually("the draft's end",
                       lambda: not os.path.exists(s.control + ".fence.draft"))
            assert s.client().status()["gate"] == "open"
            if die == "lease":
                refused("LeaseEnded", k.finish, a)
            if not held and die != "coordinator":
                reason = {"unhold": "no room", "worker": "worker lost", "release": "released",
                          "other disk": "aborted"}[die]
                assert refused("GenericError", k.call, "mirror-prepare-now").endswith(reason)
            if die != "worker":
                assert w.event("MIRROR_RELEASED")["generation"] == (generation if held else 0)
                region.clean()
                arm(s, w, Word())
            s.close()


@test
def worker_hears_late_of_the_commit():
    """A worker that gives up, and has not heard of the commit yet, is told that it is too late.
    The job has ended then: no other hand-off of it begins."""
    for release in False, True:
        s = Server()
        s.guest()
        w, region, info = attach(s, start="new")
        region.clean()
        word = Word()
        k = arm(s, w, word, release=release)
        generation = k.call("mirror-prepare-now")["generation"]
        word.set(1)
        k.call("job-finalize", generation=generation)
        for g in 0, generation:
            refused("AlreadyCommitted", w.call, "mirror-unhold", generation=g, reason="cancelled")
        assert w.event("MIRROR_COMMITTED")["generation"] == generation
        refused("DeviceNotActive" if release else "Fenced", k.call, "mirror-prepare", fd=Word().fd,
                rollback_token="t", arm=True)
        s.close()


@test
def generations_of_another_server():
    """A coordinator that has lost its server, and names its hand-off to the next one, cannot touch
    the hand-off that is there."""
    s = Server()
    s.guest()
    w, region, info = attach(s, start="new")
    region.clean()
    k, old = prepare_all(s, w, Word())
    k.call("mirror-release", generation=old)
    s.hang_up()
    s.end()
    s.start()
    s.guest()
    w, region, info = attach(s, start="new")
    region.clean()
    word = Word()
    k, generation = prepare_all(s, w, word)
    assert old < generation < 1 << 53, (old, generation)
    late = s.client()
    refused("StaleGeneration", late.call, "mirror-release", generation=old)
    word.set(1)
    refused("StaleGeneration", late.call, "job-finalize", generation=old)
    k.call("job-finalize", generation=generation)
    s.close()


@test
def prepare_is_refused():
    """Without a worker, word, token; with a second hand-off under way; by the worker."""
    s = Server()
    s.guest()
    k = s.client()
    word = Word()
    refused("DeviceNotActive", k.call, "mirror-prepare", fd=word.fd, rollback_token="t")
    w, region, info = attach(s, start="new")
    assert "descriptor" in refused("GenericError", k.call, "mirror-prepare", rollback_token="t")
    for token in "", "a b", "x" * 65, "a/b":
        refused("GenericError", k.call, "mirror-prepare", fd=word.fd, rollback_token=token)
    refused("GenericError", k.call, "mirror-prepare", fd=word.fd, rollback_token="t", waiters="x")
    refused("GenericError", k.call, "mirror-prepare", fd=word.fd, rollback_token="t", lease_ms=0)
    null = os.open("/dev/null", os.O_RDWR)
    assert "memfd" in refused("GenericError", k.call, "mirror-prepare", fd=null, rollback_token="t")
    os.close(null)
    a = k.start("mirror-prepare", fd=word.fd, rollback_token="t")
    request = w.event("MIRROR_REQUEST")
    other, other_word = s.client(), Word()
    refused("Busy", other.call, "mirror-prepare", fd=other_word.fd, rollback_token="t")
    refused("Busy", other.call, "mirror-release")       # it tidies up
    assert word.get() == 0, "one coordinator gave up another's hand-off"
    w.call("mirror-reply", request=request["request"], error={"class": "NotReady",
                                                              "desc": "not yet"})
    assert refused("NotReady", k.finish, a) == "not yet"
    assert word.get() == 2
    # The lease ends before it is prepared.
    word = Word()
    a = k.start("mirror-prepare", fd=word.fd, rollback_token="t", lease_ms=200)
    w.event("MIRROR_REQUEST")
    w.call("mirror-hold", lease_ms=200)
    refused("LeaseEnded", k.finish, a)
    assert word.get() == 2
    # The coordinator leaves before the worker has begun to hold.
    word = Word()
    k.start("mirror-prepare", fd=word.fd, rollback_token="t")
    w.event("MIRROR_REQUEST")
    k.close()
    w.event("MIRROR_RELEASED", generation=0)
    assert word.get() == 2
    s.close()


@test
def waiters_keep():
    """waiters=keep: who waited at the commit goes on waiting and is let through by a rollback; who
    comes later waits as well: to a guest that is taken over soon an error would be as bad then."""
    s = Server()
    h, other = s.guest(), s.guest()
    w, region, info = attach(s, start="new")
    region.clean()
    word = Word()
    k, generation = prepare_all(s, w, word, waiters="keep")
    write = write_later(h, b"x" * BLOCK, 0)
    assert write(0.2) is None
    word.set(1)
    k.call("job-finalize", generation=generation)
    assert write(0.3) is None
    late = write_later(other, b"y" * BLOCK, BLOCK)
    assert late(0.3) is None
    k.call("mirror-rollback", rollback_token="tok-1", destination_stopped=True)
    assert write() == 0 and late() == 0
    s.close()


def edit(path, pattern, text):
    with open(path) as f:
        before = f.read()
    after = re.sub(pattern, text, before)
    assert after != before
    with open(path, "w") as f:
        f.write(after)


@test
def killed_in_doubt():
    """The server is killed while prepared: the next one does not know how it was decided, and
    refuses writes until somebody says.  Killed while it only held, nothing can have been decided,
    unless the host was restarted, which may have lost the mark "prepared" of the draft."""
    for answer in "finalize", "release", "rollback", "held only", "held only, other boot":
        s = Server()
        h = s.guest()
        w, region, info = attach(s, start="new")
        region.clean()
        if answer.startswith("held only"):
            k = s.client()
            k.start("mirror-prepare", fd=Word().fd, lease_ms=60000, rollback_token="tok-1")
            w.event("MIRROR_REQUEST")
            generation = w.call("mirror-hold")["generation"]
        else:
            k, generation = prepare_all(s, w, Word())
        s.stop(signal.SIGKILL)
        s.hang_up()
        if answer == "held only, other boot":
            edit(s.control + ".fence.draft", r'("boot-id": ")[^"]*', r"\g<1>0")
        s.start()
        if answer == "held only":
            s.guest().pwrite(b"x", 0)
            refused("NotFenced", s.client().call, "mirror-rollback", rollback_token="tok-1",
                    destination_stopped=True)
            assert not os.path.exists(s.control + ".fence.draft")
            s.close()
            continue
        assert "rollback with token tok-1" in s.log()
        h, c = s.guest(), s.client()
        try:
            h.pwrite(b"x", 0)
            raise AssertionError("written in doubt")
        except nbd.Error as e:
            assert e.errnum == errno.EPERM
        if answer == "finalize":
            refused("StaleGeneration", c.call, "job-finalize", generation=generation + 1)
            c.call("job-finalize", generation=generation)
            assert os.path.exists(s.control + ".fence")
        elif answer == "release":
            refused("StaleGeneration", c.call, "mirror-release")
            c.call("mirror-release", generation=generation)
            h.pwrite(b"x", 0)
        else:
            c.call("mirror-rollback", rollback_token="tok-1", destination_stopped=True)
            h.pwrite(b"x", 0)
        assert not os.path.exists(s.control + ".fence.draft")
        s.close()


@test
def damaged_fence_record():
    """A record that cannot be read is a fence, said loudly; an empty draft is none."""
    for text in "", "{}", "garbage", '{"format": "nbdmirror-fence", "version": 99}', "{" * 5000:
        s = Server()
        s.hang_up()
        s.end()
        with open(s.control + ".fence", "w") as f:
            f.write(text)
        s.start()
        assert ".fence cannot be read" in s.log(), s.log()
        h, c = s.guest(), s.client()
        try:
            h.pwrite(b"x", 0)
            raise AssertionError("written in spite of a fence record")
        except nbd.Error as e:
            assert e.errnum == errno.EPERM
        assert "by hand" in refused("GenericError", c.call, "mirror-rollback", rollback_token="t",
                                    destination_stopped=True)
        assert c.status()["state"] == "completed" and c.status()["rollback-token"] is None
        s.close()
    s = Server()
    s.hang_up()
    s.end()
    open(s.control + ".fence.draft", "w").close()
    s.start()
    s.guest().pwrite(b"x", 0)
    s.close()


@test
def fence_record_cannot_be_written():
    """Then the guest is not even held, and the reason is told; the hand-off may hold again."""
    s = Server()
    h = s.guest()
    w, region, info = attach(s, start="new")
    region.clean()
    os.mkdir(s.control + ".fence.draft")
    k = s.client()
    k.start("mirror-prepare", fd=Word().fd, lease_ms=60000, rollback_token="t")
    w.event("MIRROR_REQUEST")
    assert ".fence.draft" in refused("GenericError", w.call, "mirror-hold")
    assert s.client().status()["gate"] == "open"
    h.pwrite(b"x", 0)
    os.rmdir(s.control + ".fence.draft")
    # The draft is there before the gate is held, and goes when the hold does.
    g = w.call("mirror-hold")["generation"]
    assert os.path.exists(s.control + ".fence.draft")
    w.call("mirror-unhold", generation=g)
    assert not os.path.exists(s.control + ".fence.draft")
    region.clean()
    g = w.call("mirror-hold")["generation"]
    w.call("mirror-prepared", generation=g, session=1)
    s.close()


@test
def rollback_of_a_commit_that_was_not_recorded():
    """It leaves no job behind: the worker's destination may have been written to."""
    s = Server()
    h = s.guest()
    w, region, info = attach(s, start="new")
    region.clean()
    word = Word()
    k, generation = prepare_all(s, w, word)
    os.makedirs(s.control + ".fence/in-the-way")
    word.set(1)
    assert "not recorded" in refused("GenericError", k.call, "job-finalize", generation=generation)
    os.removedirs(s.control + ".fence/in-the-way")      # it tries again only in a second
    k.call("mirror-rollback", rollback_token="tok-1", destination_stopped=True)
    h.pwrite(b"x", 0)
    assert not os.path.exists(s.control + ".fence.draft")
    refused("NothingToResume", k.call, "mirror-attach", start="resume")
    s.close()


@test
def sigterm_while_prepared():
    """Undecided: abort, and no draft is left.  Decided: the fence record is there."""
    for value in 0, 1:
        s = Server()
        h = s.guest()
        w, region, info = attach(s, start="new")
        region.clean()
        word = Word()
        prepare_all(s, w, word)
        write = write_later(h, b"x" * BLOCK, 0)
        assert write(0.2) is None
        s.process.send_signal(signal.SIGSTOP)       # so that it sees both at once
        if value:
            word.set(value)
        with s.terminating():
            s.process.send_signal(signal.SIGCONT)
            assert w.closed()
        assert write() in (errno.ESHUTDOWN, errno.EPERM)
        s.cut(h)
        assert s.ends_by_itself()
        assert word.get() == (value or 2)
        with open(s.disk, "rb") as f:
            assert f.read(BLOCK) == bytes(BLOCK), "a write passed the gate"
        assert os.path.exists(s.control + ".fence") == bool(value)
        assert not os.path.exists(s.control + ".fence.draft")
        s.close()


if __name__ == "__main__":
    sys.exit(run_tests(TESTS))
