#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that the recipe for libvirt in nbdmirror(1) works as it is printed: on two hosts with a
libvirt each, a running guest is moved with `virsh migrate --suspend` and `complete`. The guest goes
on counting at hostb, every record that it has acknowledged is there, the disks are equal at the
commit, and the old one takes no write. Then the same with a worker that is killed when the guest's
memory has gone: `complete` fails, the guest stays paused, and another worker and another `complete`
do it. And the same from a guest that libvirt has started on its image: it is adopted, given back,
adopted again, and moved. After each move the guest gets its image at hostb, and libvirt's commands
on that disk work; then libvirt is told where the disk is.

Where there is no libvirt, or no right to make namespaces, it is skipped."""

import json
import os
import re
import shutil
import socket
import sys
import threading

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import hosts  # noqa: E402
import machine  # noqa: E402
import scene  # noqa: E402

SIZE = 64 * scene.MIB
DOMAIN = """
<domain type='qemu'>
  <name>vm1</name>
  <memory unit='MiB'>96</memory>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>/var/lib/libvirt/boot/kernel</kernel>
    <initrd>/var/lib/libvirt/boot/initramfs</initrd>
    <cmdline>console=ttyS0 loglevel=5 panic=-1 no_timer_check mitigations=off \
random.trust_cpu=on RECORDER="-l 50"</cmdline>
  </os>
  <features><acpi/></features>
  <on_reboot>destroy</on_reboot>
  <devices>
    DISK
    <serial type='file'><source path='/var/lib/libvirt/boot/console'/><target port='0'/></serial>
    <serial type='unix'><source mode='connect' path='SERIAL'/><target port='1'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>
"""
FILE = """<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/>
  <source file='/srv/vm1.img'/><target dev='vda' bus='virtio'/></disk>"""
ADOPTED = "libvirt: a guest that was started on its image"
BY_ITSELF = "libvirt: the guest uses its image by itself at hostb"


def disk_of_the_manual():
    with open(os.path.join(scene.SRCDIR, "docs/nbdmirror.pod")) as f:
        return re.search(r"^ <disk type='network'.*?</disk>", f.read(), re.M | re.S)[0]


class Words:
    """Where the guest speaks to: the first QEMU that connects is a, the second b, and so on."""

    def __init__(self, s):
        self.s, self.path, self.sockets = s, s.path("words"), {}
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        os.chmod(self.path, 0o777)
        self.listener.listen(4)
        self.thread = threading.Thread(target=self.accept, daemon=True)
        self.thread.start()
        s.at_end.append(self.close)

    def accept(self):
        for name in "abcd":
            try:
                self.sockets[name] = self.listener.accept()[0]
            except OSError:
                return
            self.s.story.listen(name, self.sockets[name])

    def close(self):
        self.listener.close()


def start_libvirt(s, host):
    boot = host.path("/var/lib/libvirt/boot")
    os.makedirs(boot)
    shutil.copy(s.boot.kernel, boot + "/kernel")
    shutil.copy(s.boot.initramfs, boot + "/initramfs")
    conf_path = host.path("/etc/libvirt/libvirtd.conf")
    with open("/proc/sys/kernel/random/uuid") as uuid, open(conf_path, "w") as conf:
        conf.write(f'host_uuid = "{uuid.read().strip()}"\nauth_unix_rw = "none"\n')
    with open(host.path("/etc/libvirt/qemu.conf"), "a") as conf:
        conf.write("cgroup_controllers = []\n")  # they are not private to the host
    start_daemon(s, host, "virtlogd")
    start_daemon(s, host, "libvirtd")


def start_daemon(s, host, daemon):
    s.spawn(f"{host.name}-{daemon}", [*host.prefix, daemon])
    if daemon == "libvirtd":
        s.wait_for("libvirt", lambda: "host" in host.run("virsh -c qemu:///system hostname",
                                                         status=None))


def status(s, host, control):
    return json.loads(host.run(f"{s.nbdmirror_path} status {control} --json"))


def move(s, a, b, before_complete=None, section="WITH LIBVIRT"):
    """The recipe. BEFORE_COMPLETE is called when the guest's memory is at hostb. Returns the last
    record before the commit."""
    control, told = "/var/lib/nbdmirror/vm1.control", []
    same = f"--after-commit-exec 'cmp {a.path('/srv/vm1.img')} {b.path('/srv/vm1.img')} && "
    waiting = iter(("ready", "synchronised"))
    for host, command in hosts.recipe("nbdmirror.pod", section):
        host, command = {"hosta": a, "hostb": b}[host], command.replace("20G", "64M")
        if "--watch" in command:
            what = next(waiting)
            scene.check(what in command, f"the manual does not wait for {what}: {command}")
            s.wait_for(what, lambda: status(s, a, control)["state"] == "ready" and
                       (what == "ready" or status(s, a, control)["synchronised"]))
            s.story.wait_for_more(20, machine="a")
            continue
        if "complete" in command:
            told.append(s.story.last)
            state = b.run("virsh domstate vm1")
            scene.check("paused" in state, f"the guest at hostb is {state}")
            scene.check(
    "shut off" in a.run("virsh domstate vm1"),
     "the guest at hosta was not ended")
            if before_complete:
                before_complete(command)
            command = command.replace("--after-commit-exec '", same)
        host.run(command)
        if "dumpxml" in command:
            put_disk(a, command.split(">")[1])
        if "virsh start" in command:
            s.story.wait_for_line("LOADED")
    return told[0]


def put_disk(a, path):
    """What the manual leaves to its reader."""
    with open(a.path(path)) as f:
        definition = re.sub("<disk .*?</disk>", disk_of_the_manual(), f.read(), flags=re.S)
    with open(a.path(path), "w") as f:
        f.write(definition)


def by_itself(s, b):
    """Take it off the server of `receive`. The names of the nodes are libvirt's."""
    for host, command in hosts.recipe("nbdmirror.pod", BY_ITSELF):
        scene.check(host == "hostb", f"{BY_ITSELF}: {command} at {host}")
        if "virsh edit" not in command:  # of the persistent definition: the next start's
            b.run(command)
    s.story.wait_for_more(30, machine="b")
    answer = json.loads(b.run("virsh qemu-monitor-command vm1 '{\"execute\": "
                              "\"query-named-block-nodes\", \"arguments\": {\"flat\": true}}'"))
    nodes = {node["node-name"]: node["drv"] for node in answer["return"]}
    scene.check(sorted(nodes.values()) == ["file", "raw"] and
                all(name.startswith("libvirt-1-") for name in nodes), f"the nodes are {nodes}")
    b.run("virsh blockresize vm1 vda 64M")
    scene.check("67108864" in b.run("virsh domblkinfo vm1 vda"), "libvirt does not find the image")
    scene.check("vm1.nbd" in b.run("virsh dumpxml vm1"), "libvirt knows more than is written")
    scene.check(not os.path.exists(b.path("/run/nbdmirror/vm1.nbd")), "the server has not ended")


def tell_libvirt(s, b):
    """As the manual says; and a snapshot has the image as its base then."""
    path = b.path("/run/libvirt/qemu/vm1.xml")
    b.run("kill $(pidof libvirtd)")
    s.wait_for("libvirt's end", lambda: not b.run("pidof libvirtd", status=None))
    with open(path) as f:
        text = f.read()
    disk = re.search("<disk .*?</disk>", text, re.S)[0]
    new = re.sub("<source protocol='nbd'.*?(index='[0-9]*')>", r"<source file='/srv/vm1.img' \1>",
                 disk.replace("type='network'", "type='file'"))
    new = re.sub("<(host|reconnect) [^>]*/>", "", new)
    with open(path, "w") as f:
        f.write(text.replace(disk, new))
    start_daemon(s, b, "libvirtd")
    scene.check("/srv/vm1.img" in b.run("virsh domblklist vm1"), "libvirt does not show the image")
    b.run("virsh snapshot-create-as vm1 s1 --disk-only --no-metadata "
          "--diskspec vda,file=/srv/over.qcow2")
    scene.check("backing file: /srv/vm1.img" in b.run("qemu-img info -U /srv/over.qcow2"),
                "the snapshot has another base")
    s.story.wait_for_more(20, machine="b")
    b.run("virsh blockcommit vm1 vda --active --pivot --wait")


def at_its_end(s, a, b, words, told):
    s.story.wait_for_more(30, machine="b")
    scene.check("running" in b.run("virsh domstate vm1"), "the guest does not run at hostb")
    by_itself(s, b)
    tell_libvirt(s, b)
    server = scene.Server(None, a.path("/run/nbdmirror/vm1.nbd"))
    s.check_refuses(server)
    s.check_records(told, a.path("/srv/vm1.img"), blocks=True)
    words.sockets["b"].sendall(b"quit\n")
    s.story.wait_for_line("DOWN")
    s.wait_for("the guest's end", lambda: "shut off" in b.run("virsh domstate vm1"))
    s.check_story()
    s.check_clean(b.path("/srv/vm1.img"))
    s.check_records(s.story.last, b.path("/srv/vm1.img"), blocks=True)


def prepare(s, disk):
    if not all(map(shutil.which, ("virsh", "libvirtd", "virtlogd"))):
        raise machine.Unavailable(
            "libvirt is not installed (libvirt-daemon-system, libvirt-clients)")
    s.boot = machine.Boot(s.tmp)
    os.environ["PATH"] = s.builddir + ":" + os.environ["PATH"]
    a, b = hosts.pair(s)
    hosts.let_log_in(s, a, b)
    words = Words(s)
    for host in (a, b):
        start_libvirt(s, host)
    os.rename(s.make_disk("vm1.img", data=8 * scene.MIB), a.path("/srv/vm1.img"))
    with open(a.path("/root/vm1.xml"), "w") as f:
        f.write(DOMAIN.replace("DISK", disk).replace("SERIAL", words.path))
    a.run("virsh define /root/vm1.xml")
    return a, b, words


def killed_worker(s, a, b, complete):
    """Nothing is handed over without a worker; with another one everything is."""
    control = "/var/lib/nbdmirror/vm1.control"
    mirror = next(
    c for h,
    c in hosts.recipe(
        "nbdmirror.pod",
         "WITH LIBVIRT") if "nbdmirror mirror" in c)
    a.run("kill -9 $(pgrep -f '^nbdmirror mirror')")
    told = a.run(complete, status=1)
    scene.check("rollback token" not in told, f"handed over without a worker: {told}")
    scene.check("paused" in b.run("virsh domstate vm1"), "the guest at hostb was resumed")
    a.run(mirror + " --resume")
    s.wait_for("ready", lambda: status(s, a, control)["state"] == "ready")


def start_on_image(s, a, b):
    """libvirt starts the guest without us. Its own monitor is refused. The guest is adopted, and
    given back, and then libvirt's commands on its disk work as before."""
    for host in (a, b):
        host.run("mkdir -p -m 700 /var/lib/nbdmirror; mkdir -p -m 755 /run/nbdmirror")
    a.run("virsh start vm1")
    s.story.wait_for_line("LOADED")
    first = [c for h, c in hosts.recipe("nbdmirror.pod", ADOPTED) if h == "hosta"][:3]
    told = a.run(first[2].replace(
        "libvirt:vm1", "/var/lib/libvirt/qemu/domain-1-vm1/monitor.sock"), status=7)
    scene.check("libvirt keeps this monitor" in told, told)
    for command in first:
        a.run(command)
    scene.check("file-node" in a.run("cat /var/lib/nbdmirror/vm1.control.adopted"), "no record")
    s.story.wait_for_more(20)
    told = a.run("virsh blockresize vm1 vda 64M", status=1)
    scene.check("libvirt-1-format" in told, f"libvirt found its node: {told}")
    a.run(f"{s.nbdmirror_path} give-back --qmp libvirt:vm1 /var/lib/nbdmirror/vm1.control")
    s.story.wait_for_more(20)
    a.run("virsh blockresize vm1 vda 64M")
    scene.check("custom-monitor" in a.run("cat /var/log/libvirt/qemu/vm1.log"), "not tainted")


def test(s):
    if not scene.LONG:
        raise machine.Unavailable("takes long: NBDMIRROR_LONG=1")
    for case, section in ((None, "WITH LIBVIRT"), (killed_worker, "WITH LIBVIRT"), (None, ADOPTED)):
        adopted = section == ADOPTED
        a, b, words = prepare(s, FILE if adopted else disk_of_the_manual())
        if adopted:
            start_on_image(s, a, b)
        told = move(s, a, b, case and (lambda command, case=case: case(s, a, b, command)), section)
        at_its_end(s, a, b, words, told)
        scene.note(
            f"{section}, {case.__name__ if case else 'as printed'}: {s.story.last} records, "
            f"{told} of them at hosta")
        s.forget()


if __name__ == "__main__":
    scene.main(test)
