#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Proves that `status`, `set`, `pause`, `resume`, `cancel` and `complete` drive the jobs of two
qcow2 disks that one QEMU has open by itself, over its only free monitor: both are handed over at
one instant, with one stop of the guest, and each destination holds every record that the guest has
acknowledged. With --sync top, base and compare only what differs is sent. Until the commit the
guest goes on whatever fails: a lease that ends, a coordinator or a worker that is killed, a slow
destination. A guest that somebody lets go on in between is noticed."""

import json
import os
import signal
import socket
import sys
import threading
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import scene  # noqa: E402
from qmp_proxy import QmpProxy  # noqa: E402
from scene import check  # noqa: E402
from tracked import Disks  # noqa: E402

ROUNDS = 100 if scene.LONG else 1


def driven(s, jobs):
    """One disk, by all commands but complete."""
    control = jobs.controls[0]
    s.nbdmirror("status", control, status=1)
    jobs.start()
    jobs.wait_ready()
    status = jobs.status(0)
    check(status["worker"] == "attached" and status["gate"] == "open" and status["converging"]
          and status["sync"] == "full" and status["size"] == 64 * scene.MIB
          and status["target"] == jobs.dests[0].uri and status["max-downtime-ms"] == 30000
          and status["expected-downtime-ms"] <= 30000 and status["pass"] > 1, f"status: {status}")
    check("ready" in s.nbdmirror("status", control), "status for people does not say that")
    s.nbdmirror("set", control, "bandwidth=900M", "max-downtime=40s", "policy=fail")
    status = jobs.status(0)
    check((status["bandwidth-limit"], status["max-downtime-ms"], status["policy"])
          == (900 * scene.MIB, 40000, "fail"), f"after set: {status}")
    for word in ("policy=sync", "synchronous=on", "max-write-delay=20ms"):
        s.nbdmirror("set", control, "bandwidth=1M", word, status=1)
    check(jobs.status(0)["bandwidth-limit"] == 900 * scene.MIB, "a refused set has set something")
    s.nbdmirror("pause", control)
    check(jobs.status(0)["state"] == "paused", "it is not paused")
    s.nbdmirror("complete", *jobs.controls, status=1)
    s.story.wait_for_more(3)
    s.nbdmirror("resume", control)
    jobs.wait_ready()
    s.nbdmirror("rollback", control, "--token", "t", "--destination-stopped", status=7)
    s.nbdmirror("cancel", control)
    check(s.wait_exit(jobs.workers[0]) == 6, "it did not end as cancelled")
    check(jobs.status(1)["state"] == "ready", "the job of the other disk has suffered")
    jobs.workers[1].send_signal(signal.SIGINT)
    check(s.wait_exit(jobs.workers[1]) == 6, "it did not end as cancelled")
    jobs.tidy()


def handed_over(s, jobs):
    """Both at one instant; the guest is stopped once."""
    jobs.vm.qmp.events.clear()
    jobs.start()
    jobs.wait_ready()
    told = json.loads(s.nbdmirror("complete", "--json", "--lease", "20s", *jobs.controls))
    check(told["committed"] and len(told["disks"]) == 2, f"complete said {told}")
    jobs.check_committed()
    stops = [e for e in jobs.vm.qmp.events if e["event"] == "STOP"]
    check(len(stops) == 1, f"the guest was stopped {len(stops)} times")
    scene.note("pause " + ", ".join(f"{d['downtime-ms']:.1f} ms" for d in told["disks"]))
    jobs.go_on()


def in_steps(s, jobs):
    """Prepared by one process: it ends by itself, is released or is committed."""
    jobs.start()
    jobs.wait_ready()
    prepare = ("complete", "--prepare-only", "--json", "--lease")
    s.nbdmirror(*prepare, "500ms", *jobs.controls, status=None)
    s.wait_for("the end of the lease", lambda: jobs.vm.running, 20)
    s.nbdmirror("complete", "--commit", "--token", "x", *jobs.controls, status=1)
    jobs.wait_ready()
    s.nbdmirror(*prepare, "60s", *jobs.controls)
    check(not jobs.vm.running, "the guest runs though it is prepared")
    check(jobs.status(0)["state"] == "prepared", "its state is not prepared")
    s.nbdmirror("complete", "--release", *jobs.controls)
    check(jobs.vm.running, "the guest does not go on after the release")
    jobs.wait_ready()
    # A worker is killed while both are held.
    s.nbdmirror(*prepare, "60s", *jobs.controls)
    jobs.workers[1].kill()
    s.wait_for("the guest", lambda: jobs.vm.running, 20)
    s.wait_exit(jobs.workers[1])
    check(jobs.workers[0].poll() is None, "the job of the other disk has ended as well")
    jobs.start(1)
    jobs.wait_ready()
    # Somebody lets the guest go on between prepared and commit: what it writes is missing.
    told = json.loads(s.nbdmirror(*prepare, "60s", *jobs.controls))
    jobs.vm.qmp("cont")
    s.story.wait_for_more(3)
    jobs.vm.qmp("stop")
    hook = s.path("hook")
    s.nbdmirror("complete", "--commit", "--token", told["rollback-token"], *jobs.controls,
                "--after-commit-exec", f"echo >'{hook}'", status=1)
    check(not os.path.exists(hook), "the destination would have been started")
    for worker in jobs.workers:
        check(s.wait_exit(worker) == 1, "the guest has run, and its worker says nothing of it")
    jobs.go_on()
    jobs.start()
    jobs.wait_ready()
    told = json.loads(s.nbdmirror(*prepare, "60s", *jobs.controls))
    s.nbdmirror("complete", "--commit", "--token", told["rollback-token"], *jobs.controls)
    jobs.check_committed()
    jobs.go_on()


def differences(s, jobs):
    """The second disk lies on a base, which its destination holds: what is equal is not sent."""
    base = ("--base", jobs.raws[1], "--trust-base")
    for options in (("top", *base), ("base", *base), ("compare",)):
        jobs.start(1, ("--sync", *options), like_base=True)
        jobs.wait_ready(1)
        status = jobs.status(1)
        check(status["sync"] == options[0] and status["skipped-bytes"] > 3 * scene.MIB,
              f"--sync {options[0]}: {status}")
        s.nbdmirror("complete", "--lease", "20s", jobs.controls[1])
        check(s.wait_exit(jobs.workers[1]) == 0, "the hand-over failed")
        s.run(["qemu-img", "compare", "-U", "-f", "qcow2", "-F", "raw", jobs.images[1],
               jobs.dests[1].disk])
        jobs.go_on()
    mirror = ("mirror", jobs.controls[1])
    s.nbdmirror(*mirror, jobs.dests[1].uri, "--sync", "top", status=2)
    s.nbdmirror(*mirror, jobs.dests[1].uri, "--sync", "incremental", "--since", "c", status=2)
    s.nbdmirror(*mirror, s.path("nothing.img"), "--sync", "base", *base, status=7)


def runs_on(vm):
    """What a coordinator has asked for before it was killed may come a moment later."""
    if not vm.running:
        return False
    time.sleep(0.5)
    return vm.running


def killed(s, jobs):
    """The coordinator, or a worker, at any instant: all disks are handed over, or none is."""
    for number in range(ROUNDS):
        jobs.start()
        jobs.wait_ready()
        process = s.spawn("complete", [s.nbdmirror_path, "complete", *jobs.controls])
        jobs.rng_sleep(0.15)
        (jobs.workers[1] if number % 2 else process).kill()
        s.wait_exit(process)
        left = jobs.workers[:1] if number % 2 else jobs.workers

        def ended(left=left):
            return any(w.poll() is not None for w in left)

        s.wait_for("either end", lambda: ended() or runs_on(jobs.vm), 30)
        if not ended():  # a worker lets the guest go on
            jobs.cancel()
        else:
            for worker in jobs.workers:
                s.wait_exit(worker)
            jobs.check_contents()
            jobs.go_on()
        jobs.tidy()


def monitor_kept(s, jobs):
    """Between its last two looks somebody else takes the monitor, for longer than the worker waits
    (and in a long run for longer than it waits to let the guest go on, which is the guardian's
    then): nothing is handed over, and the guest goes on."""
    proxy = QmpProxy(jobs.vm, like_qemu=False)

    def take_it():
        other = socket.socket(socket.AF_UNIX)
        other.connect(proxy.path)
        threading.Timer(25 if scene.LONG else 14, other.close).start()

    proxy.after["stop"] = lambda: proxy.before.update({"query-jobs": take_it})
    dest = s.plain("kept", s.empty_disk("kept.img", jobs.raws[0]))
    worker = s.spawn("keeps", [s.nbdmirror_path, "mirror", f"qmp:{proxy.path}/disk0", dest.uri,
                               "--max-downtime", "30s", "--on-ready", "complete"])
    check(s.wait_exit(worker) == 1, "it was handed over, or ended otherwise")
    s.wait_for("the guest", lambda: jobs.vm.running, 30)
    proxy.close()
    check(not proxy.errors, f"in the test's own actions: {proxy.errors}")
    jobs.tidy()


def test(s):
    jobs = Disks(s, 2)
    s.story.wait_for_line("LOADED")
    driven(s, jobs)
    monitor_kept(s, jobs)
    handed_over(s, jobs)
    in_steps(s, jobs)
    differences(s, jobs)
    killed(s, jobs)
    s.check_story()


scene.main(test)
