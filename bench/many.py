# SPDX-License-Identifier: LGPL-2.1-or-later
"""Many disks of one host: how soon all mirrors are ready, what they cost while they are ready and
nothing is written, and how long the guests pause when all disks are handed over at one instant.

Each disk has a server (`nbdmirror serve`) and a worker (`nbdmirror mirror`) of its own; one nbdkit
has all destinations, as files on tmpfs.  Everything runs on this host, the destination too.

  ready s     from the start of the first worker until every job is ready
  worker %    of a processor, for each ready worker, in half of the --idle time; server % the same
  wakes/s     of a ready worker: how often one of its threads went to sleep; server: the same
  worker MiB  what only this worker has in memory; server MiB the same
  pause ms    of the disk that was held longest: from its hold until it knew of the commit
  median ms   of all disks
  command ms  the whole of `nbdmirror complete`: checks, hand-over, fence records made durable
  copy s      processor time of a worker until all are ready

With --budget RATE all jobs share a budget of that rate; "copy s" then has what sharing costs, and
"sum" is what they sent together, divided by what the rate allows in that time.  With --waves N the
disks are handed over in N groups, one after the other.

Processor times are read to the nanosecond, so idle processes can be told apart.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import time

import common
from common import MIB, median, table


def add_options(parser):
    parser.add_argument("--disks", default="1,10,50,200", metavar="LIST", help="(%(default)s)")
    parser.add_argument("--size", type=int, default=64, metavar="MIB",
                        help="of a disk (%(default)s)")
    parser.add_argument("--data", type=int, default=4, metavar="MIB",
                        help="of random data in it (%(default)s)")
    parser.add_argument("--budget", metavar="RATE", help="share this rate, e.g. 100M")
    parser.add_argument("--waves", type=int, default=1, metavar="N",
                        help="hand over in so many groups (%(default)s)")
    parser.add_argument("--idle", type=float, default=10, metavar="S",
                        help="how long to look at ready jobs: one half at the workers, the other at"
                             " the servers (%(default)s)")


# ---- what processes cost -------------------------------------------------------------------

class Cost:
    """Processor seconds of a process since it began, all its threads, also those that have ended;
    and how often those that it has now went to sleep."""

    def __init__(self, pid):
        self.cpu = time.clock_gettime(~pid << 3 | 2)  # its clock, as clock_getcpuclockid(3) says
        self.wakes = 0
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                with open(f"/proc/{pid}/task/{task}/status") as f:
                    self.wakes += next(int(line.split()[1]) for line in f
                                       if line.startswith("voluntary_ctxt"))


def own_memory(pid):
    """Bytes that would be free without this process."""
    with open(f"/proc/{pid}/smaps_rollup") as f:
        return sum(int(line.split()[1]) for line in f if line.startswith("Private_")) * 1024


def look_idle(pids, seconds):
    """Means over PIDS: percent of a processor, sleeps a second, own memory."""
    before = [Cost(pid) for pid in pids]
    start = time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - start
    after = [Cost(pid) for pid in pids]
    pairs = list(zip(before, after))
    return (sum(b.cpu - a.cpu for a, b in pairs) / took / len(pids) * 100,
            sum(b.wakes - a.wakes for a, b in pairs) / took / len(pids),
            sum(map(own_memory, pids)) / len(pids))


# ---- one run -------------------------------------------------------------------------------

def states(setup, controls):
    out = subprocess.run([setup.nbdmirror, "status", "--json", *controls], check=True,
                         capture_output=True).stdout
    told = json.loads(out)
    return [o["state"] for o in (told if isinstance(told, list) else [told])]


def wait_ready(setup, controls, workers, seconds):
    deadline = time.monotonic() + seconds
    while set(states(setup, controls)) != {"ready"}:
        for worker in workers:
            if worker.poll() is not None:
                with open(os.path.join(setup.tmp, "workers.log")) as f:
                    raise RuntimeError(f"a worker has ended with status {worker.returncode}:\n"
                                       + f.read())
        if time.monotonic() > deadline:
            raise RuntimeError(f"not ready after {seconds} s")
        time.sleep(0.05)


def end(processes):
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        if process.poll() is None:
            process.kill()
            process.wait()


def share(setup, args):
    """Make the budget.  The options for a worker."""
    if not args.budget:
        return []
    os.environ["NBDMIRROR_BUDGETS"] = os.path.join(setup.tmp, "budgets")
    subprocess.run([setup.nbdmirror, "budget", "many", args.budget], check=True)
    return ["--budget", "many"]


def spent(setup):
    """(bytes, bytes a second that are allowed)"""
    out = subprocess.run([setup.nbdmirror, "budget", "many", "--json"], check=True,
                         capture_output=True).stdout
    told = json.loads(out)
    return told["bytes"], told["limit"]


def in_waves(setup, controls, nr):
    """hand_over() of NR groups: the longest and all pauses, and the time of all commands."""
    groups = [hand_over(setup, controls[i::nr]) for i in range(nr)]
    pauses = sorted(p for g in groups for p in g["pauses-ms"])
    return {"pause-ms": pauses[-1], "median-ms": median(pauses), "pauses-ms": pauses,
            "command-ms": sum(g["command-ms"] for g in groups)}


def hand_over(setup, controls):
    start = time.monotonic()
    done = subprocess.run([setup.nbdmirror, "complete", "--json", *controls], capture_output=True,
                          text=True, timeout=120)
    took = time.monotonic() - start
    if done.returncode != 0:
        raise RuntimeError(f"complete: exit status {done.returncode}\n{done.stderr}")
    pauses = sorted(d["downtime-ms"] for d in json.loads(done.stdout)["disks"])
    return {"pause-ms": pauses[-1], "median-ms": median(pauses), "command-ms": took * 1000,
            "pauses-ms": pauses}


def one(setup, args, nr):
    names = [f"d{i}" for i in range(nr)]
    dests = os.path.join(setup.shm, "dests")
    os.mkdir(dests)
    servers, workers = [], []
    try:
        for name in names:
            disk = os.path.join(setup.disks, name)
            common.make_disk(disk, args.data * MIB, (args.size - args.data) * MIB)
            with open(os.path.join(dests, name), "wb") as f:
                f.truncate(args.size * MIB)
            servers.append(common.serve(setup, name, disk))
        dest = common.nbdkit(setup, "dest", "file", f"dir={dests}", options=["-t", "4"])
        servers.append(dest)
        controls = [s.control for s in servers[:-1]]
        options = share(setup, args)
        before = spent(setup)[0] if options else 0
        start = time.monotonic()
        with open(os.path.join(setup.tmp, "workers.log"), "w") as log:
            for name, control in zip(names, controls):
                to = f"nbd+unix:///{name}?socket={dest.sock}"
                workers.append(subprocess.Popen(
                    [setup.nbdmirror, "mirror", control, to, "--json", *options],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log))
        wait_ready(setup, controls, workers, 60 + nr)
        figures = {"disks": nr, "ready-s": time.monotonic() - start}
        figures["copy-s"] = sum(Cost(w.pid).cpu for w in workers) / nr
        if options:
            after, rate = spent(setup)
            figures["sum"] = (after - before) / rate / figures["ready-s"]
        time.sleep(2 if not setup.smoke else 0)
        pids = [w.pid for w in workers], [s.pid for s in servers[:-1]]
        for what, those in zip(("worker", "server"), pids):
            cpu, wakes, memory = look_idle(those, args.idle / 2)
            figures.update({f"{what}-percent": cpu, f"{what}-wakes": wakes,
                            f"{what}-bytes": memory})
        figures.update(in_waves(setup, controls, min(args.waves, nr)))
        return figures
    finally:
        end(workers)
        end([s.process for s in servers])
        for server in servers:
            server.stop()  # it removes the socket
        for directory in (setup.disks, dests):
            for name in os.listdir(directory):
                os.unlink(os.path.join(directory, name))
        os.rmdir(dests)


def run(setup, args):
    common.need("nbdkit")
    counts = [int(n) for n in args.disks.split(",")]
    rounds = args.runs or 3
    if setup.smoke:
        counts, rounds, args.idle, args.size, args.data = [3], 1, 0.4, 8, 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    results = []
    for _ in range(rounds):
        for nr in counts:
            figures = one(setup, args, nr)
            results.append(figures)
            if setup.verbose:
                common.say(", ".join(f"{k} {v:.3f}" for k, v in figures.items()
                                     if isinstance(v, float)) + f" ({nr} disks)")
    show(results, counts)
    return results


def show(results, counts):
    rows = []
    for nr in counts:
        def of(key, scale=1, nr=nr):
            return median([r[key] / scale for r in results if r["disks"] == nr])
        worst = max(r["pause-ms"] for r in results if r["disks"] == nr)
        rows.append([nr, of("ready-s"), f"{of('worker-percent'):.3f}", of("worker-wakes"),
                     of("worker-bytes", MIB), f"{of('server-percent'):.3f}", of("server-wakes"),
                     of("server-bytes", MIB), of("pause-ms"), worst, of("median-ms"),
                     of("command-ms"), f"{of('copy-s'):.3f}",
                     *([f"{of('sum'):.2f}"] if "sum" in results[0] else [])])
    print(table(["disks", "ready s", "worker %", "wakes/s", "MiB", "server %", "wakes/s", "MiB",
                 "pause ms", "most", "median ms", "command ms", "copy s",
                 *(["sum"] if "sum" in results[0] else [])], rows))
