#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a user of one build sees and a user of another does not: subcommands, options, exit
statuses, values in JSON, files, the filters' parameters, commands and events of the control
protocol.

usage: interfaces.py BUILD [OTHER-BUILD]

With one build directory, what it offers is printed as JSON.  With two, the differences: "-" is only
in the first, "+" only in the second.  The exit status is 1 if something is only in the first, since
then somebody's script breaks.  It is for people who rearrange code or make a release, not a part of
make check.
"""

import glob
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time

PYTHON_TOUCH = """import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.shutdown()
"""


class Build:
    def __init__(self, directory):
        self.directory = os.path.abspath(directory)
        with open(os.path.join(self.directory, "Makefile"), encoding="utf-8") as f:
            top = re.search(r"^abs_top_srcdir = (.*)$", f.read(), re.M)[1]
        self.source = top
        self.program = os.path.join(self.directory, "nbdmirror")
        self.seen = {}
        self.children = []

    def see(self, what, names):
        self.seen[what] = sorted(set(names))

    def run(self, *words, timeout=60):
        environment = dict(os.environ, LC_ALL="C", NBDMIRROR_FILTER=os.path.join(
            self.directory, "nbd-plugin/.libs/nbdkit-mirror-filter.so"))
        return subprocess.run([self.program, *words], stdin=subprocess.DEVNULL, timeout=timeout,
                              capture_output=True, text=True, env=environment, check=False)

    def spawn(self, *words):
        environment = dict(os.environ, LC_ALL="C", NBDMIRROR_FILTER=os.path.join(
            self.directory, "nbd-plugin/.libs/nbdkit-mirror-filter.so"))
        child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.DEVNULL, text=True, env=environment)
        self.children.append(child)
        return child

    def end(self):
        for child in reversed(self.children):
            child.terminate()
        for child in self.children:
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()

    # ---- what can be asked for, or read in the source ----

    def command_line(self):
        names = re.findall(r"^  ([a-z-]+)  ", self.run("--help").stdout, re.M)
        self.see("subcommands", names)
        for name in names:
            text = self.run(name, "--help").stdout
            options = set(re.findall(r"--[a-z][a-z-]*", text)) | set(
                re.findall(r"^ +(-[a-zA-Z])\b", text, re.M))
            # An option of somebody else's that the text mentions is not ours.
            known = [o for o in options if "unrecognized" not in self.run(name, o).stderr
                     and "unknown option" not in self.run(name, o).stderr]
            self.see(f"options of {name}", known)

    def source_text(self, *folders):
        text = ""
        for folder in folders:
            for path in glob.glob(f"{self.source}/{folder}/**/*.[ch]", recursive=True):
                with open(path, encoding="utf-8") as f:
                    text += f.read()
        return text

    def protocol(self):
        filters = self.source_text("nbd-plugin")
        commands = re.findall(
            r'\{\s*"([a-z_-]+)",\s*((?:"[^"]*"\s*)+),\s*[a-z_]+,\s*(?:true|false)', filters)
        self.see("commands of the control protocol",
                 [f"{name} " + " ".join(re.findall(r'"([^"]*)"', arguments))
                  for name, arguments in commands])
        everything = filters + self.source_text("mirror", "cmd", "control")
        self.see("events", re.findall(r'"((?:MIRROR|BLOCK_JOB|JOB)_[A-Z_]+)"', everything))
        self.see("classes of errors of the control protocol",
                 re.findall(r'control_error \([^;"]*"([A-Z][A-Za-z]+)"', filters))
        self.see("parameters of the filters",
                 re.findall(r'"((?:mirror|receive|digest)-[a-z-]+)"', filters))
        self.see("exports and notes of receive",
                 re.findall(r"#define RECEIVE_\w+ .*", self.source_text("control")))
        self.see("layout of the shared region",
                 [re.sub(r"\s+", " ", line) for line in re.findall(
                     r"#define REGION_(?:MAGIC|VERSION|LAYOUT\w*) .*|^  _Atomic [^;]*;",
                     self.source_text("dirty-bitmap"), re.M)])

    # ---- what is seen while a disk is mirrored ----

    def wait_for(self, seconds, what):
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline:
                raise TimeoutError(what)
            time.sleep(0.05)

    def serve(self, name, disk, *options):
        socket, control = name + ".sock", name + ".control"
        self.spawn(self.program, "serve", disk, "--socket", socket, "--control", control, *options)
        self.wait_for(20, lambda: os.path.exists(socket) and self.run("status", control).returncode
                      == 0)
        subprocess.run(["/usr/bin/python3", "-c", PYTHON_TOUCH, f"nbd+unix:///?socket={socket}"],
                       check=True)
        return control

    def destination(self, name, size):
        self.spawn("nbdkit", "-f", "-U", os.path.abspath(name + ".sock"), "memory", str(size))
        self.wait_for(20, lambda: os.path.exists(name + ".sock"))
        return f"nbd+unix:///?socket={os.path.abspath(name)}.sock"

    def state(self, control):
        return json.loads(self.run("status", control, "--json").stdout)["state"]

    def values(self, what, text):
        def paths(value, name):
            if isinstance(value, dict):
                for key in value:
                    yield from paths(value[key], f"{name}.{key}" if name else key)
            elif isinstance(value, list):
                for entry in value:
                    yield from paths(entry, name + "[]")
            else:
                yield name
        self.see(what, paths(json.loads(text), ""))

    def a_mirror(self):
        with open("disk", "wb") as f:
            f.write(os.urandom(8 << 20))
        control = self.serve("a", "disk")
        self.values("status --json without a job", self.run("status", control, "--json").stdout)
        to = self.destination("b", 8 << 20)
        self.values("mirror --dry-run --json", self.run(
            "mirror", control, to, "--dry-run", "--measure", "1s", "--json").stdout)
        job = self.spawn(self.program, "mirror", control, to, "--report", "report", "--json")
        self.wait_for(30, lambda: self.state(control) == "ready")
        self.values("status --json of a job", self.run("status", control, "--json").stdout)
        with open(control + ".worker", encoding="utf-8") as f:
            text = re.sub(r"^\d+ *", "PID ", f.read().strip())
            self.see("file CONTROL.worker", [re.sub(r"[0-9a-f-]{36}", "UUID", text)])
        self.values("complete --json", self.run("complete", control, "--json").stdout)
        job.wait(30)
        self.values("status --json after the hand-over",
                    self.run("status", control, "--json").stdout)
        with open("report", encoding="utf-8") as f:
            self.values("mirror --report", f.read())
        with open(control + ".fence", encoding="utf-8") as f:
            self.values("file CONTROL.fence", f.read())
        received = self.spawn(self.program, "receive", "c.img", "--size", "8M", "--socket",
                              os.path.abspath("c.sock"))
        self.values("the line of receive", received.stdout.readline())

    def exit_statuses(self):
        """The documented ones, each by the shortest way to it."""
        def slow_destination():
            # Wants more than the limit lets through: does not converge.
            control = self.serve("d", "disk2")
            fio = self.spawn("fio", "--name=g", "--ioengine=nbd",
                             f"--uri=nbd+unix:///?socket={os.path.abspath('d.sock')}",
                             "--rw=randwrite", "--bs=64k", "--size=32M", "--time_based",
                             "--runtime=60")
            time.sleep(1)
            status = self.run("mirror", control, self.destination("e", 32 << 20), "--bandwidth",
                              "2M", "--policy", "fail", "--max-downtime", "10ms").returncode
            fio.terminate()
            return status

        def cancelled():
            control = self.serve("f", "disk2")
            job = self.spawn(self.program, "mirror", control, self.destination("g", 32 << 20),
                             "--bandwidth", "1M")
            self.wait_for(30, lambda: self.state(control) == "copying")
            job.send_signal(signal.SIGINT)
            return job.wait(30)

        with open("disk2", "wb") as f:
            f.write(os.urandom(32 << 20))
        with open("other", "wb") as f:
            f.write(os.urandom(32 << 20))
        statuses = {
            "verify of a disk with itself": self.run("verify", "disk2", "disk2").returncode,
            "status without a server": self.run("status", "nothing").returncode,
            "an unknown option": self.run("mirror", "--nonsense").returncode,
            "an unknown subcommand": self.run("nonsense").returncode,
            "a destination that refuses": self.run(
                "copy", "disk2", "nbd+unix:///?socket=nothing").returncode,
            "a guest that is too fast": slow_destination(),
            "verify of two disks": self.run("verify", "disk2", "other").returncode,
            "a job that is interrupted": cancelled(),
            "a destination that is too small": self.run(
                "copy", "disk2", self.destination("h", 4096)).returncode,
        }
        self.see("exit statuses", [f"{what}: {status}" for what, status in statuses.items()])

    def look(self):
        here = os.getcwd()
        self.command_line()
        self.protocol()
        with tempfile.TemporaryDirectory(prefix="nbdmirror-interfaces.") as directory:
            os.chdir(directory)
            try:
                self.a_mirror()
                self.exit_statuses()
            finally:
                self.end()
                os.chdir(here)
        return self.seen


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    first = Build(sys.argv[1]).look()
    if len(sys.argv) == 2:
        print(json.dumps(first, indent=2))
        return
    second = Build(sys.argv[2]).look()
    lost, same = 0, 0
    for what in sorted(first.keys() | second.keys()):
        before, after = set(first.get(what, [])), set(second.get(what, []))
        same += len(before & after)
        lost += len(before - after)
        if before != after:
            print(what)
            for sign, names in ("-", before - after), ("+", after - before):
                for name in sorted(names):
                    print(f"  {sign} {name}")
    print(f"{same} in both, {lost} only in the first")
    sys.exit(lost > 0)


main()
