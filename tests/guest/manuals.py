#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that the examples with two hosts in nbdmirror(1) and nbdmirror-receive(1) work as they are
printed, one command after the other, on two hosts in namespaces. No virtual machines: what a guest
would have written is written by hand. (The examples of nbdmirror-migrate(1) and for libvirt are run
by two-hosts-tls.py and libvirt.py.)"""

import json
import os
import re
import shutil
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import hosts  # noqa: E402
import scene  # noqa: E402

CONTROL = "/var/lib/nbdmirror/vm1.control"
SIZE = 64 * scene.MIB


class Reader:
    """Does at two hosts what the manual says."""

    def __init__(self, s):
        self.s, self.token, self.pid = s, None, None
        self.a, self.b = hosts.pair(s)
        hosts.let_log_in(s, self.a, self.b)
        hosts.certificates(self.a, self.b)
        with open(self.a.path("/srv/vm1.img"), "wb") as f:
            f.truncate(SIZE)
            f.write(os.urandom(8 * scene.MIB))

    def state(self, host):
        return json.loads(host.run(f"nbdmirror status {CONTROL} --json"))["state"]

    def wait(self, host, state):
        self.s.wait_for(state, lambda: self.state(host) == state)

    def guest_writes(self, host):
        """To the export at /run/vm1.nbd, while somebody may mirror it."""
        host.run("/usr/bin/python3 -c 'import nbd, os\nh = nbd.NBD()\n"
                 "h.connect_unix(\"/run/vm1.nbd\")\n"
                 "h.pwrite(os.urandom(65536), 1 << 20)\nh.flush()'")

    def same(self):
        self.s.check_same(self.a.path("/srv/vm1.img"), self.b.path("/srv/vm1.img"))

    def until_ready(self, host, command):
        """Again while it says "not ready", because that state comes and goes with what the guest
        writes."""
        end = time.monotonic() + 30
        while True:
            try:
                return host.run(command)
            except scene.Failed as e:
                if "not ready" not in str(e) or time.monotonic() > end:
                    raise

    def do(self, name, command):
        host = {"hosta": self.a, "hostb": self.b}[name]
        command = command.replace(
    "20G", "64M").replace(
        "4711", str(
            self.pid)).replace(
                "TOKEN", str(
                    self.token))
        if "--watch" in command:
            return self.wait(host, re.search(r"# until (\w+)", command)[1])
        # "goes on": in another terminal
        if "nbdmirror mirror" in command and "--detach" not in command:
            self.s.spawn("mirror", [*host.prefix, "sh", "-c", command])
            return self.wait(host, "ready")
        if "nbdmirror complete" in command:
            self.wait(host, "ready")
            self.guest_writes(host)
        said = self.until_ready(host, command)
        if '"pid"' in said:
            self.pid = json.loads(said.splitlines()[-1])["pid"]
        if "rollback token" in said:
            self.token = re.search(r"rollback token: (\w+)", said)[1]
            self.same()
            self.s.check_refuses(scene.Server(None, host.path("/run/vm1.nbd")))
        return said

    def follow(self, page, section, unless=""):
        """All of a section but what matches UNLESS."""
        for name, command in hosts.recipe(page, section):
            if not (unless and re.search(unless, f"{name}# {command}")):
                self.do(name, command)


def test(s):
    if os.environ.get("builddir") is None:
        os.environ["builddir"] = s.builddir
    os.environ["PATH"] = s.builddir + ":" + os.environ["PATH"]

    # nbdmirror(1): over TLS, and back with the token.
    r = Reader(s)
    r.follow("nbdmirror.pod", "A MIGRATION BETWEEN TWO HOSTS OVER TLS")
    r.guest_writes(r.a)
    s.forget()

    # nbdmirror-receive(1): handed over, and served with tracking at hostb; and given up.
    r = Reader(s)
    r.follow("nbdmirror-receive.pod", "TWO HOSTS", unless="cancel|--give-up|--seal")
    r.guest_writes(r.b)
    scene.check(r.token, "nothing was handed over")
    # The way back, with what was changed at hostb.
    r.follow("nbdmirror-receive.pod", "By comparing")
    r.guest_writes(r.a)
    s.forget()
    r = Reader(s)
    r.follow("nbdmirror-receive.pod", "TWO HOSTS",
             unless="complete|--seal|kill|hostb# nbdmirror serve")
    scene.check(not os.path.exists(r.b.path("/srv/vm1.img")), "what was given up is there still")
    s.forget()

    # Through ssh.
    if not shutil.which("qemu-img"):
        scene.note("without the example with ssh: qemu-img is not installed")
        return
    r = Reader(s)
    r.b.run("qemu-img create -q -f qcow2 /srv/base.qcow2 64M")
    r.a.run("cp /srv/vm1.img . && mkdir -p -m 700 /var/lib/nbdmirror &&"
            " nbdmirror serve /srv/vm1.img --socket /run/vm1.nbd"
            f" --control {CONTROL} --detach")
    r.follow("nbdmirror-receive.pod", "THROUGH SSH")
    r.do("hosta", f"nbdmirror complete {CONTROL}")
    r.b.run("qemu-img convert -O raw /srv/vm1.qcow2 /srv/vm1.raw")
    s.check_same(r.a.path("/root/vm1.img"), r.b.path("/srv/vm1.raw"))


scene.main(test)
