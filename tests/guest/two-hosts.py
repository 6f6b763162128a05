#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that a guest moves between two "hosts" over a long line: network namespaces with a veth
pair between them, 10 ms each way and 1 % of loss, by tc netem where the kernel has it, else by a
relay that delays (delay.py). Disk and memory go over TCP. No acknowledged record is lost, the disks
are equal at the commit.

Without the right to make namespaces both hosts are this one, with the relay between."""

import os
import shutil
import socket
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import scene  # noqa: E402
from moves import Move, receive  # noqa: E402

DELAY_MS, LOSS = 10, 1


def quiet(*words):
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0


class Hosts:
    """Where things run: command prefixes in_a, in_b; addresses a, b; the line between is slow, or
    is to be slowed down."""

    def __init__(self, s):
        self.s = s
        self.in_a, self.in_b, self.a, self.b, self.slow = [], [], "127.0.0.1", "127.0.0.1", False
        if os.getuid() != 0 or not shutil.which("ip") or not shutil.which("tc"):
            return
        names = [f"nbdmirror-{os.getpid()}-{side}" for side in "ab"]
        s.at_end.append(lambda: [quiet("ip", "netns", "del", name) for name in names])
        if all(quiet("ip", "netns", "add", name) for name in names) and self.connect(*names):
            self.in_a, self.in_b = ([*"ip netns exec".split(), name] for name in names)
            self.a, self.b = "10.77.0.1", "10.77.0.2"
            # Each on its own: a kernel without netem refuses all of them.
            self.slow = all(quiet(*where, "tc", "qdisc", "add", "dev", "line", "root", "netem",
                                  "delay",
                                  f"{DELAY_MS}ms", "loss", f"{LOSS}%")
                                  for where in (self.in_a, self.in_b))

    @staticmethod
    def connect(a, b):
        steps = [f"ip -n {a} link add line type veth peer name line netns {b}",
                 f"ip -n {a} addr add 10.77.0.1/24 dev line",
                 f"ip -n {b} addr add 10.77.0.2/24 dev line"]
        steps += [f"ip -n {host} link set {dev} up" for host in (a, b) for dev in ("lo", "line")]
        return all(quiet(*step.split()) for step in steps)

    def port(self, number):
        """One that is free: any, in a namespace of our own."""
        if self.in_b:
            return number
        with socket.create_server(("127.0.0.1", 0)) as sock:
            return sock.getsockname()[1]

    def to_b(self, port):
        """The address under which A reaches PORT of B over the slow line."""
        if self.slow:
            return f"{self.b}:{port}"
        via = self.port(port + 1000)
        relay = self.s.spawn(f"relay{port}", [*self.in_a, sys.executable, os.path.join(
            os.path.dirname(os.path.abspath(__file__)), "delay.py"), f"{self.a}:{via}",
            f"{self.b}:{port}",
            str(DELAY_MS), str(LOSS)], stdout=subprocess.PIPE)
        scene.check(relay.stdout.readline() == b"ready\n", "the relay did not start")
        return f"{self.a}:{via}"


def test(s):
    hosts = Hosts(s)
    scene.note(("two namespaces" if hosts.in_a else "one host") + \
               ", " + ("netem" if hosts.slow else "a relay that delays"))
    src = s.serve("src", s.make_disk("src.img", data=8 * scene.MIB))
    disk, memory = hosts.port(10809), hosts.port(4444)
    dst = receive(s, "dst", os.path.getsize(src.disk), prefix=hosts.in_b,
                  where=["--port", str(disk), "--address", hosts.b])
    a = s.vm("a", [src], recorder="-l 50", prefix=hosts.in_a)
    b = s.vm("b", [dst.guest], incoming=True, prefix=hosts.in_b)
    s.story.wait_for_line("LOADED")

    move = Move(s, a, b, [(src, f"nbd://{hosts.to_b(disk)}/mirror")], "--memory-bandwidth", "200M",
                prefix=hosts.in_a,
                memory=["--memory-uri", f"tcp:{hosts.to_b(memory)}", "--incoming-uri",
                        f"tcp:{hosts.b}:{memory}"])
    told = []

    def committed():
        told.append(s.story.last)
        s.check_same(src.disk, dst.disk)
        s.check_refuses(src)
    move.dest.before["cont"] = committed
    move.run()
    scene.check(told, "the destination was never started")
    s.story.wait_for_more(30, machine="b")
    b.shut_down()
    s.check_story()
    s.check_clean(dst.disk)
    s.check_records(s.story.last, dst.disk, blocks=True)


scene.main(test)
