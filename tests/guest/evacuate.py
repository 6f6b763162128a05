#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that `evacuate-disk` moves the disk of a running guest to another file: no I/O error in
the guest's log, no acknowledged record lost, the old server gone, the old disk fenced, and the new
one served under the old names, also after a restart. Where the new server cannot be had the guest
goes on with the old disk; a run that was killed after the commit is finished by the next; and the
disk can move on from there."""

import json
import os
import shutil
import signal
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import scene  # noqa: E402


def evacuate(s, src, to, *options, **run):
    return s.nbdmirror("evacuate-disk", src.control, to, *options, **run)


def moved(s, src, vm, old_pid):
    """The guest goes on, with another server under the same names."""
    s.story.wait_for_more(30, machine=vm.name)
    s.check_story()
    status = s.status(src)
    scene.check(status["gate"] == "open", "the new server is fenced")
    s.wait_for("the end of the old server", lambda: gone(old_pid), 20)
    s.at_end.append(lambda: stop(status["server-pid"]))
    left = [n for n in os.listdir(s.tmp) if n.endswith((".new", ".try", ".evacuated", ".try.pid"))]
    scene.check(not left, f"left over: {left}")
    return status["server-pid"]


def gone(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] == "Z"  # a child of this test
    except FileNotFoundError:
        return True


def stop(pid):
    if not gone(pid):
        os.kill(pid, signal.SIGKILL)


def fails_before(s, src):
    """Nothing changes where the new disk is no good, or a server of it cannot be started."""
    full = s.path("full.img")
    with open(full, "w") as f:
        f.write("something")
    evacuate(s, src, full, status=7)
    evacuate(s, src, s.path("no.img"), "--", "no-such-parameter=1", status=1)
    scene.check(not os.path.exists(s.path("no.img")), "a new disk was left over")
    evacuate(s, src, src.disk)


def fails_after(s, src):
    """The new server cannot be started when all is committed: the guest goes on with the old
    one."""
    os.mkdir(src.socket + ".new")
    evacuate(s, src, s.path("no.img"), status=1)
    os.rmdir(src.socket + ".new")
    s.story.wait_for_more(30)
    status = s.status(src)
    scene.check((status["server-pid"], status["gate"]) == (src.pid, "open"), "not rolled back")
    scene.check(not os.path.exists(src.control + ".fence"), "a fence was left over")


def killed(s, src, to):
    """The command is killed when all is committed, and the guest's writes wait; run again it gets
    to the end."""
    os.mkdir(s.path("bin"))
    with open(s.path("bin/nbdkit"), "w") as f:
        f.write(f"""#!/bin/sh
case "$*" in *.sock.new*) touch {s.path("starting")}; exec sleep 60 ;; esac
exec {shutil.which("nbdkit")} "$@"
""")
    os.chmod(s.path("bin/nbdkit"), 0o755)
    process = s.spawn("killed", [s.nbdmirror_path, "evacuate-disk", src.control, to],
                      start_new_session=True,
                      env={**os.environ, "PATH": s.path("bin") + ":" + os.environ["PATH"]})
    s.wait_for("the commit", lambda: os.path.exists(s.path("starting")), 60)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    told = s.story.last
    evacuate(s, src, s.path("other.img"), status=7)
    scene.check(s.story.last <= told + 1, "the guest wrote to a disk that was handed over")
    evacuate(s, src, to)


def fenced_under(s, name, disk, gate):
    """Is DISK, served under the names of the moved one, fenced?"""
    server = s.serve(name, disk)
    scene.check(s.status(server)["gate"] == gate, f"{disk} is not {gate}")
    s.end(server.process)


def test(s):
    src = s.serve("src", s.make_disk("src.img", data=4 * scene.MIB))
    vm = s.vm("a", [src], recorder="-l 200", reconnect_delay=60)
    s.story.wait_for_line("LOADED")
    fails_before(s, src)
    fails_after(s, src)

    one, two = s.path("one.img"), s.path("two.img")
    answer = json.loads(evacuate(s, src, one, "--json"))
    first = moved(s, src, vm, src.pid)
    scene.note(f"the guest waited {answer['stall-ms']:.0f} ms, the largest gap between records was "
               f"{s.story.largest_gap() * 1000:.0f} ms")
    s.check_records(1, src.disk, blocks=True)

    killed(s, src, two)
    second = moved(s, src, vm, first)
    vm.shut_down()
    s.check_clean(two)
    s.check_records(s.story.last, two, blocks=True)

    os.kill(second, signal.SIGTERM)
    s.wait_for("the end of the new server", lambda: gone(second) and not os.path.exists(src.socket))
    fenced_under(s, "src", src.disk, "fenced")
    fenced_under(s, "src", one, "fenced")
    fenced_under(s, "src", two, "open")


scene.main(test)
