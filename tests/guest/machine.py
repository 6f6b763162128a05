# SPDX-License-Identifier: LGPL-2.1-or-later
"""Virtual machines for tests and benchmarks: a Debian kernel, an initramfs with busybox and the
recorder (recorder.c), QEMU without hardware acceleration, its QMP sockets and serial lines.

    boot = machine.Boot(directory)                 # may raise Unavailable: skip
    story = machine.Story()                        # what the guest said, wherever it ran
    vm = machine.Vm(boot, directory, "a", story, ["/tmp/x/a.sock"])
    story.wait_for_record(20)
    vm.qmp("query-status")

The kernel comes from Debian's linux-image-VERSION-cloud package, downloaded (not installed) with
apt-get once and kept, unpacked, in ${XDG_CACHE_HOME:-~/.cache}/nbdmirror. Needs no privileges. """

import glob
import gzip
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
QEMU = "qemu-system-x86_64"
MODULES = ("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci",
           "virtio_blk")


class Unavailable(Exception):
    """Something that guests need is not to be had here; the text says what."""


# ---- kernel and initramfs --------------------------------------------------------------

def cache_directory():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(base, "nbdmirror", "guest")


def fetch_packages(into):
    """Unpack kernel and busybox below the directory INTO."""
    if os.uname().machine != "x86_64" or not shutil.which("apt-get"):
        raise Unavailable("test guests are made of Debian's amd64 packages")
    depends = subprocess.run(["apt-cache", "depends", "linux-image-cloud-amd64"],
                             capture_output=True, text=True).stdout
    kernel = re.search(r"Depends: (linux-image-\S+)", depends)
    if not kernel:
        raise Unavailable("apt knows no linux-image-cloud-amd64")
    with tempfile.TemporaryDirectory() as scratch:
        # As root apt complains that its own user can't write here, and goes on.
        done = subprocess.run(["apt-get", "download", "-q", kernel[1], "busybox-static"],
                              cwd=scratch, capture_output=True, text=True, timeout=300)
        packages = glob.glob(os.path.join(scratch, "*.deb"))
        if done.returncode != 0 or len(packages) != 2:
            raise Unavailable("apt-get can't download a kernel: " + done.stderr.strip()[-200:])
        for package in packages:
            subprocess.run(["dpkg", "-x", package, into], check=True)


def kernel_tree():
    """The directory with the unpacked packages."""
    tree = cache_directory()
    if os.path.isdir(tree):
        return tree
    os.makedirs(os.path.dirname(tree), exist_ok=True)
    new = tempfile.mkdtemp(prefix="new-guest.", dir=os.path.dirname(tree))
    try:
        try:
            fetch_packages(new)
        except Unavailable:
            # A new or an old system's lists of packages, perhaps.
            if os.getuid() != 0 or subprocess.run(["apt-get", "-qq", "update"],
                                                  stdin=subprocess.DEVNULL,
                                                  capture_output=True, timeout=300).returncode != 0:
                raise
            fetch_packages(new)
        keep = wanted_files(new)
        for root, _, names in os.walk(new, topdown=False):
            for name in names:
                if os.path.join(root, name) not in keep:
                    os.unlink(os.path.join(root, name))
            if not os.listdir(root):
                os.rmdir(root)
        os.chmod(new, 0o755)
        try:
            os.rename(new, tree)
        except OSError:
            if not os.path.isdir(tree):  # another test was faster
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return tree


def wanted_files(tree):
    kernels = glob.glob(os.path.join(tree, "boot/vmlinuz-*"))
    busybox = [p for p in (os.path.join(tree, d, "busybox") for d in ("bin", "usr/bin"))
               if os.path.exists(p)]
    modules = []
    for name in MODULES:
        found = [p for p in glob.glob(os.path.join(tree, "**/kernel/drivers/*/", name + ".ko*"),
                                      recursive=True)]
        modules += found[:1]  # none: built in
    if not kernels or not busybox:
        raise Unavailable("the packages have no kernel or no busybox")
    return [kernels[0], busybox[0]] + modules


def cpio_entry(name, mode, data=b"", inode=[0]):
    """One member of a "newc" archive."""
    inode[0] += 1
    encoded = name.encode() + b"\0"
    fields = (inode[0], mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08x" % f for f in fields) + encoded
    return header + b"\0" * (-len(header) % 4) + data + b"\0" * (-len(data) % 4)


def unpacked(path):
    with open(path, "rb") as f:
        data = f.read()
    if path.endswith(".xz"):
        import lzma
        data = lzma.decompress(data)
    return data


class Boot:
    """What every machine starts from: the paths kernel, initramfs and recorder."""

    def __init__(self, directory):
        for program in (QEMU, "mke2fs", "e2fsck", "debugfs"):
            if not shutil.which(program, path=os.environ["PATH"] + ":/sbin:/usr/sbin"):
                raise Unavailable(f"{program} is not installed")
        self.kernel, busybox, *modules = wanted_files(kernel_tree())
        self.recorder = os.path.join(directory, "recorder")
        done = subprocess.run([os.environ.get("CC", "gcc"), "-O2", "-static", "-o", self.recorder,
                               os.path.join(HERE, "recorder.c")], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError("cannot compile the recorder: " + done.stderr)
        archive = b"".join(cpio_entry(d, 0o40755) for d in ("bin", "dev", "proc", "modules"))
        archive += cpio_entry("dev/console", 0o20600)  # replaced by devtmpfs
        archive += cpio_entry("bin/busybox", 0o100755, unpacked(busybox))
        archive += cpio_entry("recorder", 0o100755, unpacked(self.recorder))
        archive += cpio_entry("init", 0o100755, unpacked(os.path.join(HERE, "init")))
        for number, module in enumerate(modules):
            name = os.path.basename(module).partition(".")[0]
            archive += cpio_entry(f"modules/{number}-{name}.ko", 0o100644, unpacked(module))
        archive += cpio_entry("TRAILER!!!", 0)
        self.initramfs = os.path.join(directory, "initramfs")
        with open(self.initramfs, "wb") as f:
            f.write(gzip.compress(archive, 1))


# ---- what a guest says -----------------------------------------------------------------

class Story:
    """The guest's serial line, pieced together: it begins at one machine and goes on at another,
    perhaps in the middle of a line. records is a list of (time of arrival, machine, number).

    One thread reads all machines: where two have something to say, what the last speaker said is
    the older."""

    def __init__(self):
        self.sockets = {}  # of the machines
        self.speaker = None
        self.wake_read, self.wake_write = os.pipe()
        self.thread = None
        self.records = []
        self.lines = []
        self.faults = []
        self.partial = b""
        self.changed = threading.Condition()

    def listen(self, machine, sock):
        sock.setblocking(False)
        with self.changed:
            self.sockets[machine] = sock
        if self.thread is None:
            self.thread = threading.Thread(target=self.read, daemon=True)
            self.thread.start()
        os.write(self.wake_write, b"x")

    def read(self):
        while True:
            with self.changed:
                names = {sock: name for name, sock in self.sockets.items()}
            ready = select.select([self.wake_read, *names], [], [])[0]
            if self.wake_read in ready:
                if os.read(self.wake_read, 100).endswith(b"q"):
                    return
                ready.remove(self.wake_read)
            for sock in sorted(ready, key=lambda sock: names[sock] != self.speaker):
                self.read_one(names[sock], sock)

    def read_one(self, machine, sock):
        try:
            data = sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.speaker = machine
            self.add(machine, data)
        else:
            with self.changed:
                self.sockets.pop(machine, None)
                self.changed.notify_all()

    def wait_end(self, machine, seconds=5):
        """Until all is read that an ended machine has said."""
        with self.changed:
            self.changed.wait_for(lambda: machine not in self.sockets, seconds)

    def close(self):
        os.write(self.wake_write, b"q")
        if self.thread is not None:
            self.thread.join(5)
        os.close(self.wake_read)
        os.close(self.wake_write)

    def add(self, machine, data):
        now = time.monotonic()
        with self.changed:
            self.partial += data
            while b"\n" in self.partial:
                line, _, self.partial = self.partial.partition(b"\n")
                self.line(now, machine, line.decode(errors="replace").strip())
            self.changed.notify_all()

    def line(self, now, machine, line):
        self.lines.append(line)
        match = re.fullmatch(r"ACK (\d+)", line)
        if match:
            number = int(match[1])
            if self.records and number != self.records[-1][2] + 1:
                self.faults.append(f"{machine}: record {number} after {self.records[-1][2]} "
                                   f"of {self.records[-1][1]}")
            self.records.append((now, machine, number))
        elif not re.fullmatch(r"(BYE \d+|DOWN|LOADED)", line):
            self.faults.append(f"{machine}: {line}")

    @property
    def last(self):
        return self.records[-1][2] if self.records else 0

    def last_of(self, machine):
        with self.changed:
            return max((n for _, m, n in self.records if m == machine), default=0)

    def wait(self, what, condition, seconds=60):
        deadline = time.monotonic() + seconds
        with self.changed:
            while not condition():
                left = deadline - time.monotonic()
                if left <= 0:
                    raise RuntimeError(f"waited {seconds} s in vain for {what}; the guest's last "
                                       f"words: {self.lines[-3:]}, faults: {self.faults}")
                self.changed.wait(left)

    def wait_for_record(self, number, seconds=60):
        self.wait(f"record {number}", lambda: self.last >= number, seconds)

    def wait_for_more(self, count=20, seconds=60, machine=None):
        """COUNT more records, all of them of MACHINE if that is given."""
        start = len(self.records)
        self.wait(f"{count} more records at {machine or 'any machine'}",
                  lambda: sum(machine in (None, m) for _, m, _ in self.records[start:]) >= count,
                  seconds)

    def wait_for_line(self, text, seconds=60):
        self.wait(repr(text), lambda: any(text in line for line in self.lines), seconds)

    def largest_gap(self, since=0.0, until=float("inf")):
        """The longest time, in seconds, between two neighbouring records."""
        times = [t for t, _, _ in self.records if since <= t <= until]
        return max((b - a for a, b in zip(times, times[1:])), default=0.0)


# ---- QMP -------------------------------------------------------------------------------

class QmpError(Exception):
    pass


class Qmp:
    """One QMP connection.  events is a list of what came so far."""

    def __init__(self, path, seconds=20):
        self.sock = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + seconds
        while True:
            try:
                self.sock.connect(path)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        self.buffer = b""
        self.events = []
        self.message(seconds)
        self("qmp_capabilities")

    def message(self, seconds):
        deadline = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.sock], [], [], left)[0]:
                return None
            data = self.sock.recv(65536)
            if not data:
                raise QmpError("connection closed")
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\n")
        return json.loads(line)

    def __call__(self, command, seconds=60, **arguments):
        arguments = {name.replace("_", "-"): value for name, value in arguments.items()}
        request = json.dumps({"execute": command, "arguments": arguments})
        try:
            self.sock.sendall(request.encode() + b"\n")
        except OSError as e:
            raise QmpError(str(e)) from e
        while True:
            message = self.message(seconds)
            if message is None:
                raise QmpError(f"{command}: no answer in {seconds} s")
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise QmpError(f"{command}: {message['error']['desc']}")
            self.events.append(message)

    def wait_event(self, seconds, accept):
        """The first event, new or old, for which ACCEPT is true; None if there is none in time. It
        and those before it are forgotten."""
        deadline = time.monotonic() + seconds
        looked = 0
        while True:
            for event in self.events[looked:]:
                looked += 1
                if accept(event):
                    del self.events[:looked]
                    return event
            message = self.message(max(0, deadline - time.monotonic()))
            if message is None:
                return None
            self.events.append(message)

    def close(self):
        self.sock.close()


# ---- machines --------------------------------------------------------------------------

def ram(mebibytes):
    """For QEMU's -m: MEBIBYTES, and 8 KiB.  Before QEMU 9.0 a guest without hardware acceleration
    may lose writes to its memory when it moves, and then its kernel crashes: where the size is a
    multiple of 256 KiB, the dirty bitmap is cleared and the CPU's TLB is not.  QEMU 7.2 alone lost
    5 guests in 17 moves at 40 MB/s, and none in 32 with such a size."""
    return f"{mebibytes * 1024 + 8}K"


class Vm:
    """A running QEMU. NAME names its files in DIRECTORY; NBD is the list of its disks: Unix
    sockets, "HOST:PORT", or block device nodes as QMP's blockdev-add takes them. The disks are
    called disk0, disk1. With incoming=True it waits for a migration, and is stopped when that has
    come (-S), unless stopped=False. Sockets: NAME.qmp (ours) and NAME.qmp2 (for the program under
    test); NAME.console is the kernel's."""

    def __init__(self, boot, directory, name, story, nbd, incoming=False, memory=96, recorder="",
                 stopped=True,
                 reconnect_delay=None, options=(), prefix=()):
        self.name, self.story, self.directory = name, story, directory
        self.console = self.path("console")
        self.qmp_path = self.path("qmp2")
        serial = socket.socket(socket.AF_UNIX)
        with contextlib_unlink(self.path("serial")):
            serial.bind(self.path("serial"))
            serial.listen(1)
            argv = [*prefix, QEMU, "-name", name, "-accel", "tcg", "-m", ram(memory), "-nodefaults",
                    "-no-user-config", "-display", "none", "-machine", "pc", "-no-reboot",
                    "-kernel", boot.kernel, "-initrd", boot.initramfs,
                    "-append", "console=ttyS0 loglevel=5 panic=-1 no_timer_check "
                    "mitigations=off random.trust_cpu=on "
                    f"DISKS={len(nbd)} RECORDER=\"{recorder}\"",
                    "-serial", "file:" + self.console,
                    "-chardev", "socket,id=words,path=" + self.path("serial"),
                    "-serial", "chardev:words",
                    "-qmp", f"unix:{self.path('qmp')},server=on,wait=off",
                    "-qmp", f"unix:{self.qmp_path},server=on,wait=off"]
            for number, server in enumerate(nbd):
                node = {**server, "node-name": f"disk{number}"} if isinstance(server, dict) else \
                    nbd_node(f"disk{number}", server, reconnect_delay)
                argv += ["-blockdev", json.dumps(node),
                         "-device", f"virtio-blk-pci,id=vd{number},drive=disk{number}"]
            if incoming:
                argv += ["-incoming", "defer"] + ["-S"] * stopped
            self.log = open(self.path("log"), "w")
            self.process = subprocess.Popen([*argv, *options], stdin=subprocess.DEVNULL,
                                            stdout=self.log, stderr=self.log)
            try:
                serial.settimeout(20)
                self.serial = self.accepted(serial)
            finally:
                serial.close()
        story.listen(name, self.serial)
        self.qmp = Qmp(self.path("qmp"))

    def path(self, kind):
        return os.path.join(self.directory, f"{self.name}.{kind}")

    def accepted(self, serial):
        while True:
            if select.select([serial], [], [], 0.2)[0]:
                return serial.accept()[0]
            if self.process.poll() is not None:
                self.log.flush()
                with open(self.log.name) as f:
                    raise RuntimeError(f"QEMU {self.name} did not start: {f.read()}")

    @property
    def pid(self):
        return self.process.pid

    @property
    def running(self):
        """Does the guest run here?"""
        if self.process.poll() is not None:
            return False
        try:
            return self.qmp("query-status", seconds=20)["status"] == "running"
        except (QmpError, OSError):
            return False

    def shut_down(self, seconds=60):
        """Let the recorder end, the file systems be unmounted, and the machine go."""
        self.serial.sendall(b"quit\n")
        self.story.wait_for_line("DOWN", seconds)
        self.process.wait(timeout=seconds)

    def kill(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()
        self.story.wait_end(self.name)

    def kernel_errors(self):
        """What the guest's kernel had to complain about."""
        with open(self.console, errors="replace") as f:
            return [line.rstrip() for line in f
                    if re.search(r"I/O error|EXT4-fs (error|warning)|JBD2|Oops|BUG|hung task|panic",
                                 line)]

    def remove(self):
        self.kill()
        self.qmp.close()
        self.serial.close()
        self.log.close()
        for kind in ("qmp", "qmp2"):
            with contextlib_unlink(self.path(kind)):
                pass


class contextlib_unlink:
    """Removes a file, if it is there, before and after."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        self.__exit__()

    def __exit__(self, *_):
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass


def nbd_server(server):
    """A SocketAddress of QMP's: a path, or HOST:PORT."""
    if server.startswith("/"):
        return {"type": "unix", "path": server}
    host, _, port = server.rpartition(":")
    return {"type": "inet", "host": host, "port": port}


def nbd_node(name, server, reconnect_delay=None, export=""):
    node = {"driver": "nbd", "node-name": name, "server": nbd_server(server), "export": export,
            "discard": "unmap"}
    if reconnect_delay is not None:
        node["reconnect-delay"] = reconnect_delay
    return node
