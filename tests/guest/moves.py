# SPDX-License-Identifier: LGPL-2.1-or-later
"""A guest's move with `nbdmirror migrate`, with something between it and both monitors, so that a
test can act at an exact instant."""

import json
import os
import signal
import subprocess

from qmp_proxy import QmpProxy
from scene import check


class Move:
    """From machine A to machine B; PAIRS are (tracked source server, destination's URI) of each
    disk."""

    count = 0

    def __init__(self, s, a, b, pairs, *options, memory=None, prefix=()):
        Move.count += 1
        self.s, self.a, self.b, self.pairs = s, a, b, pairs
        self.source, self.dest = QmpProxy(a), QmpProxy(b)
        s.at_end += [self.source.close, self.dest.close]
        self.options, self.prefix = list(options), list(prefix)
        self.memory = memory or ["--memory-uri", "unix:" + s.path(f"memory{Move.count}")]
        self.log = s.path(f"move{Move.count}.log")

    def words(self):
        words = [*self.prefix, self.s.nbdmirror_path, "migrate", "--source-qmp", self.source.path,
                 "--dest-qmp",
                 self.dest.path, *self.memory]
        for server, uri in self.pairs:
            words += ["--disk", f"{server.control}={uri}"]
        return words + ["--log", self.log, *self.options]

    def start(self):
        self.process = self.s.spawn(f"migrate{Move.count}", self.words())
        return self.process

    def wait(self, seconds=90):
        status = self.s.wait_exit(self.process, seconds)
        errors = self.source.errors + self.dest.errors
        check(not errors, f"in the test's own actions: {errors}")
        return status

    def run(self):
        """All the way."""
        self.start()
        status = self.wait()
        check(status == 0, f"migrate ended with {status}")

    def recover(self):
        """After the coordinator was killed."""
        done = subprocess.run([*self.words(), "--recover"], stdin=subprocess.DEVNULL,
                              capture_output=True,
                              text=True, timeout=60)
        return done.returncode, done.stderr

    def events(self):
        with open(self.log) as f:
            return [json.loads(line) for line in f]

    def is_done(self):
        """The guest runs at the destination, and is not touched any more."""
        try:
            return any(e["event"] == "phase" and e["phase"] == "done" for e in self.events())
        except (FileNotFoundError, ValueError):  # not begun, or within a line
            return False

    def settled(self):
        """The machine where the guest goes on; that the other one does not run."""
        start = len(self.s.story.records)
        self.s.story.wait_for_more(20, 30)
        side = self.s.story.records[-1][1]
        late = {m for _, m, _ in self.s.story.records[start + 10:]}
        check(late == {side}, f"records came from {late}")
        here, there = (self.a, self.b) if side == self.a.name else (self.b, self.a)
        check(not there.running, f"two guests: {there.name} runs as well")
        return here


def receive(s, name, size, *options, prefix=(), where=None):
    """`nbdmirror receive`: the process, with uri and guest_uri, and guest, the place for a QEMU's
    disk.  SIZE None: the disk is there."""
    where = where or ["--socket", s.path(name + ".sock")]
    path = s.path(name + ".img")
    new = ["--size", str(size)] if size is not None else ["--resume"]
    process = s.spawn(name, [*prefix, s.nbdmirror_path, "receive", path, *new, *where, *options],
                      stdout=subprocess.PIPE)
    line = process.stdout.readline()
    check(line, f"receive {name} told nothing")
    told = json.loads(line)
    process.disk, process.uri, process.guest_uri = path, told["uri"], told["guest-uri"]
    process.guest = s.path(name + ".sock") if where[0] == "--socket" else \
        f"{where[where.index('--address') + 1]}:{where[where.index('--port') + 1]}"
    return process


def kill_both(s, guardian, coordinator):
    """The two processes of a migrate, the one before the other can do anything."""
    guardian.send_signal(signal.SIGSTOP)
    os.kill(coordinator, signal.SIGKILL)
    guardian.kill()
    s.wait_exit(guardian)
