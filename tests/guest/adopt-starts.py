#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that no server is left beside a guest that uses its image by itself: `adopt` is killed at
random instants while its server starts, slowly, and the next `give-back`, or another `adopt`, waits
for that server, and uses or ends it. Nor do they wait for one that was told to end, and does not as
long as the guest wants nothing of it: another one takes its place."""

import json
import os
import random
import signal
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import scene  # noqa: E402
from adopt import Disk, has_open, nodes, raw_node, tidy  # noqa: E402
from scene import check  # noqa: E402

KILLS = int(os.environ.get("KILLS", "60" if scene.LONG else "6"))
SEED = int(os.environ.get("SEED", random.SystemRandom().randrange(1 << 30)))
SLOW = 0.3  # seconds more than an nbdkit takes


def slow_nbdkit(s):
    """An environment where nbdkit starts slowly."""
    os.mkdir(s.path("bin"))
    with open(s.path("bin/nbdkit"), "w") as f:
        f.write('#!/bin/sh\nPATH=${PATH#*:}\n'
                f'case "$*" in --dump-config) ;; *) sleep {SLOW};; esac\nexec nbdkit "$@"\n')
    os.chmod(s.path("bin/nbdkit"), 0o755)
    return {**os.environ, "PATH": s.path("bin") + ":" + os.environ["PATH"]}


def named(path):
    """The processes that have PATH on their command line: a server, or what is to become one."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline") as f:
                words = f.read().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if path in words:
            found.append(f"{pid}: {words}")
    return found


def told_to_end(s, vm, disk, command):
    """A guest that is stopped keeps QEMU's connection, and so the server."""
    told = json.loads(s.nbdmirror(*disk.adopt(vm)))
    vm.qmp("stop")
    os.kill(told["server-pid"], signal.SIGTERM)
    s.wait_for("the control socket's end", lambda: not os.path.exists(disk.control))
    check(named(disk.control), "the server has ended: then this proves nothing")
    s.nbdmirror(*command, seconds=60)
    vm.qmp("cont")
    s.story.wait_for_more(3)


def test(s):
    scene.note(f"seed {SEED}")
    rng = random.Random(SEED)
    image = s.make_disk("disk.img")
    vm = s.vm("a", [raw_node(image, 0)], recorder="-l 200")
    disk = Disk(s, "d", "disk0", image)
    s.story.wait_for_record(20)
    before, environment, started = nodes(vm), slow_nbdkit(s), 0
    for run in range(KILLS):
        process = subprocess.Popen([s.nbdmirror_path, *disk.adopt(vm)], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, env=environment)
        time.sleep(rng.uniform(0.02, SLOW + 0.3))
        process.kill()
        process.wait()
        started += bool(named(disk.control))
        if run % 2:
            s.nbdmirror(*disk.adopt(vm))
            check(not has_open(vm, image), "adopted, and QEMU still has the image open")
            s.nbdmirror(*disk.give_back(vm))
        else:  # it has nothing to do after a kill before the server's start
            s.nbdmirror(*disk.give_back(vm), status=None)
        s.wait_for("the server's end", lambda: not named(disk.control), 20)
        tidy(s, vm, [disk], before)
        check(not os.path.exists(disk.control + ".starting"), "a lock is left")
        s.story.wait_for_more(3)
    told_to_end(s, vm, disk, disk.adopt(vm))
    s.nbdmirror(*disk.give_back(vm))
    told_to_end(s, vm, disk, disk.give_back(vm))
    tidy(s, vm, [disk], before)
    check(started > KILLS // 3, f"only {started} servers were started")
    scene.note(f"{started} of {KILLS} were killed after the start of the server had begun")
    vm.shut_down()
    s.check_story()
    s.check_clean(image)
    s.check_records(s.story.last, image)


scene.main(test, 1800 if scene.LONG else 600)
