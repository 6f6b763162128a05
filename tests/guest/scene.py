# SPDX-License-Identifier: LGPL-2.1-or-later
"""Common to the tests with guests: a private directory, processes, servers, disks and their check.

    import scene
    def test(s):
        src = s.serve("src", s.make_disk("src.img"))
        a = s.vm("a", [src])
        s.story.wait_for_record(20)
        ...
    scene.main(test)

Exit status 0, 1 where the test failed, 77 where guests are not to be had. At the end, however it
comes, all processes that were started are ended. In the environment: KEEP=1 keeps the directory,
NBDMIRROR_LONG=1 makes some tests do more, builddir says where the build is. """

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import machine
import strays

SRCDIR = os.path.dirname(os.path.dirname(machine.HERE))
NAME = os.path.splitext(os.path.basename(sys.argv[0]))[0]
LONG = os.environ.get("NBDMIRROR_LONG", "0") not in ("", "0")
MIB = 1 << 20
os.environ["PATH"] += ":/usr/sbin:/sbin"


class Failed(Exception):
    """What the test is about is not so."""


def note(text):
    print(f"{NAME}: {text}", file=sys.stderr, flush=True)


def check(truth, text):
    if not truth:
        raise Failed(text)


def find_build():
    given = os.environ.get("builddir")
    for path in [given] if given else [".", os.path.join(SRCDIR, "build"), SRCDIR]:
        if os.path.isfile(os.path.join(path, "config.status")):
            return os.path.abspath(path)
    raise machine.Unavailable("no build found: run from the build directory")


def sanitized(builddir):
    with open(os.path.join(builddir, "Makefile")) as f:
        return any(line.startswith("SANITIZERS =") and line.partition("=")[2].strip() not in ("",
                                                                                              "no")
                   for line in f)


def listening(path):
    """Looked up without connecting, which would count as a client."""
    if not os.path.exists(path):
        return False
    with open("/proc/net/unix", encoding="ascii", errors="replace") as f:
        return any(w[7:] == [path] and w[3] != "00000000" for w in map(str.split, f))


class Server:
    """A process that listens: socket, uri, and for a tracked disk control and disk."""

    def __init__(self, process, sock, control=None, disk=None):
        self.process, self.socket, self.control, self.disk = process, sock, control, disk
        self.uri = f"nbd+unix:///?socket={sock}"

    @property
    def pid(self):
        return self.process.pid


class Scene:
    def __init__(self, disks=None):
        """DISKS: a directory for large files; without it they are with the sockets."""
        self.builddir = find_build()
        self.nbdmirror_path = os.environ.get("NBDMIRROR", os.path.join(self.builddir, "nbdmirror"))
        os.environ.setdefault("NBDMIRROR_FILTER", os.path.join(
            self.builddir, "nbd-plugin/.libs/nbdkit-mirror-filter.so"))
        os.environ.setdefault("NBDMIRROR_RECEIVE_FILTER", os.path.join(
            self.builddir, "nbd-plugin/.libs/nbdkit-mirror-receive-filter.so"))
        os.environ.setdefault("NBDMIRROR_DIGEST_FILTER", os.path.join(
            self.builddir, "nbd-plugin/.libs/nbdkit-digest-filter.so"))
        os.environ.setdefault("NBDMIRROR_IMAGE_PLUGIN", os.path.join(
            self.builddir, "nbd-plugin/.libs/nbdkit-image-plugin.so"))
        # The paths of sockets must be short.
        self.tmp = tempfile.mkdtemp(prefix=f"nbdmirror-{NAME}.", dir="/tmp")
        self.disks = disks or self.tmp
        self.processes, self.machines, self.at_end = [], [], []
        self.boot = None
        self.story = machine.Story()

    def path(self, name):
        return os.path.join(self.tmp, name)

    # ---- processes ----

    def spawn(self, name, argv, **options):
        """In the background, output to NAME.log."""
        with open(self.path(name + ".log"), "a") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL,
                                       stdout=options.pop("stdout", log),
                                       stderr=log, **options)
        process.name = name
        self.processes.append(process)
        return process

    def run(self, argv, status=0, seconds=120, **options):
        """In the foreground; its output.  STATUS may be None: any."""
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=seconds, **options)
        if status is not None and done.returncode != status:
            raise Failed(f"exit status {done.returncode} instead of {status} from: "
                         f"{' '.join(argv)}\n"
                         f"{done.stdout}{done.stderr}")
        return done.stdout

    def nbdmirror(self, *args, **options):
        return self.run([self.nbdmirror_path, *args], **options)

    def wait_for(self, what, condition, seconds=30):
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise Failed(f"waited {seconds} s in vain for {what}")
            time.sleep(0.02)

    def wait_exit(self, process, seconds=60):
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired as e:
            raise Failed(f"{process.name} did not end within {seconds} s") from e

    def end(self, process, seconds=10):
        """With SIGTERM; it must obey."""
        process.terminate()
        return self.wait_exit(process, seconds)

    def wait_listening(self, process, *paths):
        for path in paths:
            deadline = time.monotonic() + 20
            while not listening(path):
                check(process.poll() is None, f"{process.name} ended before it listened at {path}")
                check(time.monotonic() < deadline, f"{process.name} does not listen at {path}")
                time.sleep(0.02)

    # ---- servers ----

    def serve(self, name, disk, *options, prefix=()):
        """`nbdmirror serve`, tracked."""
        sock, control = self.path(name + ".sock"), self.path(name + ".control")
        process = self.spawn(name, [*prefix, self.nbdmirror_path, "serve", disk, "--socket", sock,
                                    "--control", control, *options])
        self.wait_listening(process, sock, control)
        return Server(process, sock, control, disk)

    def plain(self, name, disk, *options, prefix=()):
        """nbdkit without tracking: a destination."""
        sock = self.path(name + ".sock")
        machine.contextlib_unlink(sock).__enter__()
        process = self.spawn(name, [*prefix, "nbdkit", "-f", "-U", sock, *options, "file", disk])
        self.wait_listening(process, sock)
        return Server(process, sock, disk=disk)

    def mirror(self, source, dest_uri, *options, name="mirror"):
        """A worker in the background."""
        return self.spawn(name, [self.nbdmirror_path, "mirror", source.control, dest_uri, *options])

    def status(self, server):
        return json.loads(self.nbdmirror("status", server.control, "--json"))

    def wait_state(self, server, *states, seconds=60):
        self.wait_for(f"state {' or '.join(states)} of {server.control}",
                      lambda: self.status(server)["state"] in states, seconds)

    # ---- machines ----

    def vm(self, name, servers, **options):
        if self.boot is None:
            self.boot = machine.Boot(self.tmp)
        vm = machine.Vm(self.boot, self.tmp, name, self.story,
                        [s.socket if isinstance(s, Server) else s for s in servers], **options)
        self.machines.append(vm)
        return vm

    # ---- disks ----

    def make_disk(self, name, size=64 * MIB, data=0):
        """An ext4 file system, with DATA bytes of random data in it."""
        path = os.path.join(self.disks, name)
        with open(path, "wb") as f:
            f.truncate(size)
        tree = os.path.join(self.disks, "tree")
        os.makedirs(tree, exist_ok=True)
        rng = random.Random(size)
        with open(os.path.join(tree, "data"), "wb") as f:
            for _ in range(data // MIB):
                f.write(rng.randbytes(MIB))
        self.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, path])
        shutil.rmtree(tree)
        return path

    def empty_disk(self, name, like):
        path = os.path.join(self.disks, name)
        with open(path, "wb") as f:
            f.truncate(os.path.getsize(like))
        return path

    def check_clean(self, *disks):
        """A guest that was shut down left no fault in its file systems."""
        for disk in disks:
            self.run(["e2fsck", "-fn", disk])

    def check_records(self, told, *disks, blocks=False):
        """Take the file systems as a crash would leave them: replay the journal of a copy, then
        look at every record. Returns how many there are."""
        files = []
        for number, disk in enumerate(disks):
            copy, out = self.path(f"check{number}.img"), self.path(f"records{number}")
            self.run(["cp", "--sparse=always", disk, copy])
            done = subprocess.run(["e2fsck", "-fp", copy], capture_output=True, text=True)
            check(done.returncode in (0, 1), f"e2fsck -fp of {disk}: {done.stdout}{done.stderr}")
            for name, to in (("records", out), ("blocks", self.path("blocks"))):
                if name == "records" or (blocks and number == 0):
                    self.run(["debugfs", "-R", f"dump /{name} {to}", copy])
            files.append(out)
        if blocks:
            self.run([self.boot.recorder, "blocks", self.path("blocks")])
        return int(self.run([self.boot.recorder, "check", str(told), *files]))

    def check_same(self, one, other):
        """Byte for byte; OTHER may be larger."""
        self.run(["cmp", "-n", str(os.path.getsize(one)), one, other])

    def check_refuses(self, server):
        """The source of a hand-off takes no write."""
        import nbd
        handle = nbd.NBD()
        handle.connect_unix(server.socket)
        try:
            handle.pwrite(b"x" * 512, 0)
        except nbd.Error as e:
            check(e.errno == "EPERM", f"a write to the old disk failed with {e.errno}, not EPERM")
        else:
            raise Failed("the old disk took a write")
        finally:
            handle.shutdown()

    def check_story(self):
        """Nothing was told twice or left out, whatever happened."""
        check(not self.story.faults, f"the guest's story: {self.story.faults[:5]}")
        for vm in self.machines:
            errors = vm.kernel_errors()
            check(not errors, f"the kernel of machine {vm.name}: {errors[:5]}")

    # ---- the end ----

    def end_processes(self):
        for function in self.at_end:
            function()
        for vm in self.machines:
            vm.remove()
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        deadline = time.monotonic() + 5
        for process in self.processes:
            try:
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        strays.end(self.tmp)
        self.processes, self.machines, self.at_end = [], [], []

    def forget(self):
        """Between the cases of one test: end everything, and start a new story."""
        self.end_processes()
        self.story.close()
        self.story = machine.Story()
        for name in os.listdir(self.tmp):
            if os.path.isdir(self.path(name)):
                shutil.rmtree(self.path(name))
            elif name not in ("recorder", "initramfs"):
                with contextlib.suppress(FileNotFoundError):  # servers are tidied up after as well
                    os.unlink(self.path(name))

    def show_logs(self):
        for name in sorted(os.listdir(self.tmp)):
            if name.endswith((".log", ".console")) and os.path.getsize(self.path(name)):
                with open(self.path(name), errors="replace") as f:
                    print(f"---- last lines of {name}:", *f.read().splitlines()[-25:], sep="\n",
                          file=sys.stderr)
        print("---- the guest's last words:", *self.story.lines[-8:], sep="\n", file=sys.stderr)

    def close(self):
        keep = os.environ.get("KEEP", "0") not in ("", "0")
        if keep:
            note(f"kept: {self.tmp}")
        self.end_processes()
        self.story.close()
        if not keep:
            shutil.rmtree(self.tmp, ignore_errors=True)


def watchdog(seconds):
    """A test that hangs must not hang all of them."""
    def bark():
        note(f"FAIL: not done after {seconds} s")
        os.kill(os.getpid(), signal.SIGALRM)
    timer = threading.Timer(seconds, bark)
    timer.daemon = True
    timer.start()


def ended(number, _frame):
    raise Failed(f"signal {number}")


def main(test, seconds=600):
    sys.exit(run(test, seconds))


def run(test, seconds):
    if os.environ.get("SHORT", "0") not in ("", "0"):
        note("SKIP: takes long, and this is a short run")
        return 77
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, ended)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, ended)
    watchdog(seconds)
    try:
        if sanitized(find_build()):
            raise machine.Unavailable("guests are too slow for a build with sanitizers")
        scene = Scene()
    except machine.Unavailable as e:
        note(f"SKIP: {e}")
        return 77
    try:
        test(scene)
        return 0
    except machine.Unavailable as e:
        note(f"SKIP: {e}")
        return 77
    except (Failed, RuntimeError, machine.QmpError, subprocess.SubprocessError, OSError) as e:
        import traceback
        note("FAIL: " + str(e))
        traceback.print_exc()
        scene.show_logs()
        return 1
    finally:
        scene.close()
