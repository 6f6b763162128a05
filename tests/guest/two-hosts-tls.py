#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that the example of nbdmirror-migrate(1), TWO HOSTS, works as it is printed, certificates,
ssh and all, on two hosts in namespaces of their own, also with the disk tracked where it is
received; and that disk and memory go over the line between them by TLS only: what is in the disk,
and the beginning of a migration stream, are looked for in every packet. No acknowledged record is
lost."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import hosts  # noqa: E402
import machine  # noqa: E402
import scene  # noqa: E402

PAGE, SECTION = "nbdmirror-migrate.pod", "TWO HOSTS"
TRACKED = "Tracked where it is received"
MARK = b"nbdmirror-must-not-be-seen-here!"
OF_MEMORY = (b"QEVM\0\0\0\3", b"Linux version 6.")  # less may be there by chance

# Runs at hosta: every packet on the line, until it is told to end; then how many of each port, and
# what was seen in them.
SNIFFER = """
import collections, signal, socket, sys
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
sock.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
sock.bind(("line", 0))
going = True
def end(*_):
    global going
    going = False
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
sizes, seen = collections.Counter(), set()
sock.settimeout(0.2)
while going:
    try:
        data = sock.recv(1 << 17)
    except TimeoutError:
        continue
    ports = {int.from_bytes(data[at:at + 2], "big") for at in (34, 36)}
    for port in ports & {22, 4444, 10810}:
        sizes[port] += len(data)
    for mark in sys.argv[1:]:
        if bytes.fromhex(mark) in data:
            seen.add(bytes.fromhex(mark))
print(dict(sizes), sorted(seen), flush=True)
"""


def marked_disk(s, path):
    """With MARK in every 32 bytes of a file."""
    tree = s.path("tree")
    os.mkdir(tree)
    with open(os.path.join(tree, "data"), "wb") as f:
        f.write(MARK * (8 * scene.MIB // len(MARK)))
    with open(path, "wb") as f:
        f.truncate(64 * scene.MIB)
    s.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, path])
    shutil.rmtree(tree)


def listener(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen(1)
    sock.settimeout(20)
    return sock


def commands(tracked):
    for name, command in hosts.recipe(PAGE, SECTION):
        if tracked and "nbdmirror receive" in command:
            yield from hosts.recipe(PAGE, TRACKED)
        else:
            yield name, command


def move(s, tracked):
    s.boot = machine.Boot(s.tmp)
    shutil.copy(s.boot.kernel, s.path("kernel"))
    a, b = hosts.pair(s)
    hosts.let_log_in(s, a, b)
    hosts.certificates(a, b)
    marked_disk(s, a.path("/srv/vm1.img"))
    words = {name: listener(s.path(name + ".words")) for name in ("hosta", "hostb")}
    sockets = {}
    sniffer = s.spawn("sniffer", [*a.prefix[:-1], "/usr/bin/python3", "-c", SNIFFER,
                                  *(m.hex() for m in (MARK, *OF_MEMORY))],
                      stdout=subprocess.PIPE)
    scene.check(sniffer.stdout.readline() == b"ready\n", "no sniffer")

    for name, command in commands(tracked):
        host = {"hosta": a, "hostb": b}[name]
        command = command.replace("20G", "64M")
        if "qemu-system" in command:
            console = s.path(name + ".console")
            command = command.replace(
                "-m 4096 ...",
                "-m 96 -accel tcg -nodefaults -no-user-config -display none -no-reboot -daemonize "
                f"-kernel {s.path('kernel')} -initrd {s.boot.initramfs} "
                "-append 'console=ttyS0 loglevel=5 panic=-1 no_timer_check mitigations=off "
                "random.trust_cpu=on RECORDER=\"-l 50\"' "
                f"-serial file:{console} "
                f"-chardev socket,id=words,path={s.path(name + '.words')} -serial chardev:words")
        told = s.story.last
        host.run(command, seconds=90)
        if "qemu-system" in command:
            sockets[name] = words[name].accept()[0]
            s.story.listen(name, sockets[name])
            if host is a:
                s.story.wait_for_line("LOADED")
                s.story.wait_for_more(20)
    scene.check("migrate" in command and told, "the example does not end with migrate")
    s.story.wait_for_more(30, machine="hostb")
    s.check_refuses(scene.Server(None, a.path("/run/vm1.nbd")))
    if tracked:
        told = json.loads(b.run("nbdmirror status /var/lib/nbdmirror/vm1.control --json"))
        scene.check((told["gate"], told["receiving"]) == ("open", False), f"its status: {told}")

    sniffer.terminate()
    seen = sniffer.stdout.read().decode()
    scene.note(f"bytes by port, and what was seen in the clear: {seen.strip()}")
    sizes, marks = re.fullmatch(r"\{(.*)\} \[(.*)\]\n", seen).groups()
    scene.check(not marks, f"seen in the clear: {marks}")
    for port, least in (10810, 8 * scene.MIB), (4444, 4 * scene.MIB):
        size = re.search(rf"{port}: (\d+)", sizes)
        scene.check(size and int(size[1]) >= least, f"not seen at all: port {port} ({sizes})")

    sockets["hostb"].sendall(b"quit\n")
    s.story.wait_for_line("DOWN")
    s.wait_for("the guest's end", lambda: not os.path.exists(b.path("/run/vm1.qmp")) or
               "qemu" not in b.run("ps ax -o comm"))
    s.check_story()
    s.check_clean(b.path("/srv/vm1.img"))
    s.check_records(s.story.last, b.path("/srv/vm1.img"), blocks=True)


def test(s):
    if not scene.LONG:
        raise machine.Unavailable("takes long: NBDMIRROR_LONG=1")
    os.environ["PATH"] = s.builddir + ":" + os.environ["PATH"]
    for tracked in False, True:
        move(s, tracked)
        scene.note(f"{'tracked at hostb' if tracked else 'as printed'}: {s.story.last} records")
        s.forget()


scene.main(test)
