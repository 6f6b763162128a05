# SPDX-License-Identifier: LGPL-2.1-or-later
"""What tracking costs a guest: fio (4 KiB random writes, a queue of 16, over a unix socket) against
nbdkit with the same plugin in these ways, all of them alive at the same time:

  plain     without the filter
  plain2    the same once more: how far two equal servers lie apart here
  idle      with the filter, no job
  tracking  with the filter and a worker attached, which is paused: every write is marked
  copying   with the filter and a worker that copies what is written, 20 MiB/s at most (it needs
            processor time of its own; on few cores that is what is seen here)

For the plugin qcow2, the plain ways are a qemu-nbd that serves a qcow2 image without us, and the
others are what `serve --format qcow2` runs: nbdkit, the filter, the image plugin and a qemu-nbd.
There the server's processor time is that of nbdkit and of its qemu-nbd together. One more way shows
what it costs that an nbdkit stands in between, whatever it does there:

  through   nbdkit's own nbd plugin in front of a qemu-nbd, without anything of ours

Many short runs in turns; medians, and medians of the ratios to the plain ones of the same round.
Where perf is installed (and allowed), one more run of each way with the filter tells which part of
the server's processor time is spent in the filter's own code: a figure that other load does not
blur. """

import contextlib
import json
import os
import shutil
import subprocess
import time

import common
from common import MIB, Run, median, ratio, table, turned

WAYS = ("plain", "plain2", "idle", "tracking", "copying")


def add_options(parser):
    parser.add_argument("--plugin", default="file,memory", metavar="LIST",
                        help="of file (on tmpfs), disk (a file in --dir), memory, qcow2 (on tmpfs)")
    parser.add_argument("--ways", default=",".join(WAYS), metavar="LIST")
    parser.add_argument("--seconds", type=float, default=2, help="of each run (2)")
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="of the disk (256)")
    parser.add_argument("--iodepth", type=int, default=16)


def start(setup, way, plugin, size):
    """A server: with the filter it has a control socket."""
    if plugin == "qcow2":
        return start_qcow2(setup, way, size)
    if plugin in ("file", "disk"):
        path = os.path.join(setup.shm if plugin == "file" else setup.disks, way + ".img")
        with open(path, "wb") as f:
            for _ in range(size // MIB):
                f.write(bytes(MIB))
        args = ["file", path]
    else:
        args = ["memory", str(size)]
    if way in ("plain", "plain2"):
        return common.nbdkit(setup, way, *args)
    control = os.path.join(setup.tmp, way + ".control")
    sock = os.path.join(setup.tmp, way + ".sock")
    server = common.nbdkit(setup, way, *args, "mirror-control=" + control,
                           "mirror-uri=" + common.uri(sock),
                           options=["--filter=" + setup.filter])
    server.control = control
    return server


def start_qcow2(setup, way, size):
    """The same for an image whose clusters are all there already."""
    path = os.path.join(setup.shm, way + ".qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(size)], check=True)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -P 1 0 {size}", path], check=True,
                   stdout=subprocess.DEVNULL)
    if way not in ("plain", "plain2", "through"):
        return common.serve(setup, way, path, "--format", "qcow2")
    sock = os.path.join(setup.tmp, way + "-qemu.sock")
    server = common.Server(setup, ["qemu-nbd", "--persistent", "--shared=0", "--format=qcow2",
                                   "--discard=unmap", "--socket=" + sock, path], sock)
    return Through(setup, way, server) if way == "through" else server


class Through(common.Server):
    """An nbdkit in front of the server BELOW, which ends with it."""

    def __init__(self, setup, name, below):
        self.below = below
        sock = os.path.join(setup.tmp, name + ".sock")
        super().__init__(setup, ["nbdkit", "-f", "-U", sock, "nbd", "shared=true",
                                 "socket=" + below.sock], sock)

    def cpu(self, children=False):
        return super().cpu(children) + self.below.cpu()

    def stop(self):
        super().stop()
        self.below.stop()


def start_job(setup, server, way, dest, size):
    """Attach a worker and let it reach the ready state; then it is paused, or goes on."""
    worker = subprocess.Popen([setup.nbdmirror, "mirror", server.control, dest.uri,
                               "--max-downtime",
                               "10s", "--policy", "none"],
                              stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=open(os.path.join(setup.tmp, way + "-worker.log"), "w"))
    deadline = time.monotonic() + 60
    while status(setup, server)["state"] != "ready":
        if worker.poll() is not None or time.monotonic() > deadline:
            worker.kill()
            raise RuntimeError("the worker was never ready: "
                               + open(os.path.join(setup.tmp, way + "-worker.log")).read())
        time.sleep(0.05)
    if way == "tracking":
        subprocess.run([setup.nbdmirror, "pause", server.control], check=True)
    else:
        subprocess.run([setup.nbdmirror, "set", server.control, "bandwidth=20M"], check=True)
    return worker


def status(setup, server):
    out = subprocess.run([setup.nbdmirror, "status", "--json", server.control],
                         capture_output=True, text=True, check=True).stdout
    return json.loads(out)


def fio(setup, server, args, seconds):
    """IOPS, p99 in microseconds, and the CPU time of the server, and of server and client together,
    for a thousand writes in ms."""
    before = server.cpu(children=True)
    run = Run(["fio", "--output-format=json", "--name=guest", "--ioengine=nbd",
               "--uri=" + server.uri,
               "--rw=randwrite", "--bs=4k", f"--iodepth={args.iodepth}", f"--size={args.size}m",
               "--norandommap", "--randrepeat=0", "--time_based", f"--runtime={seconds}"])
    cpu = server.cpu(children=True) - before
    # Older versions talk before the JSON begins.
    write = json.loads(run.output[run.output.index("{"):])["jobs"][0]["write"]
    return {
        "iops": write["iops"],
        "p99-us": write["clat_ns"]["percentile"]["99.000000"] / 1000,
        "server-cpu-ms": 1e6 * cpu / max(1, write["total_ios"]),
        "all-cpu-ms": 1e6 * (cpu + run.cpu) / max(1, write["total_ios"]),
    }


def filter_share(setup, server, args, seconds):
    """The percentage of samples in the server that hit the filter; None where perf cannot tell."""
    data = os.path.join(setup.tmp, "perf.data")
    if not shutil.which("perf"):
        return None
    perf = subprocess.Popen(["perf", "record", "-e", "cpu-clock", "-F", "4000", "-p",
                             str(server.pid),
                             "-o", data, "--", "sleep", str(seconds + 1)],
                            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL)
    time.sleep(0.5)  # so that it follows the threads of the next connection
    fio(setup, server, args, seconds)
    if perf.wait() != 0:
        return None
    report = subprocess.run(["perf", "report", "-i", data, "--sort", "dso", "--stdio"],
                            capture_output=True, text=True).stdout
    for line in report.splitlines():
        words = line.split()
        if len(words) == 2 and words[1] == os.path.basename(setup.filter):
            return float(words[0].rstrip("%"))
    return None


def measure(setup, args, plugin, ways, runs, seconds):
    size = args.size * MIB
    figures, shares = {way: [] for way in ways}, {}
    with contextlib.ExitStack() as stack:
        servers = {}
        for way in ways:
            servers[way] = stack.enter_context(start(setup, way, plugin, size))
        for way in ways:
            if way in ("tracking", "copying"):
                dest = stack.enter_context(common.nbdkit(setup, way + "-dest", "null", str(size)))
                worker = start_job(setup, servers[way], way, dest, size)
                stack.callback(end_worker, worker)
        for n in range(runs):
            for way in turned(ways, n):
                f = fio(setup, servers[way], args, seconds)
                figures[way].append(f)
                if setup.verbose:
                    common.say(f"{plugin} {way}: {f['iops']:.0f} IOPS, p99 {f['p99-us']:.0f} us, "
                              f"server {f['server-cpu-ms']:.1f} CPU ms/1000")
        for way in ways:
            if hasattr(servers[way], "control"):
                shares[way] = filter_share(setup, servers[way], args, seconds)
    return figures, shares


def end_worker(worker):
    worker.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        worker.wait(timeout=10)
        return
    worker.kill()
    worker.wait()


def run(setup, args):
    common.need("nbdkit", "fio")
    if "qcow2" in args.plugin.split(","):
        common.need("qemu-nbd", "qemu-img", "qemu-io")
    if "nbd" not in subprocess.run(["fio", "--enghelp"], capture_output=True,
                                   text=True).stdout.split():
        raise common.Unavailable("this fio has no NBD engine")
    ways = args.ways.split(",")
    runs, seconds = args.runs or 15, args.seconds
    if setup.smoke:
        runs, seconds, args.size = 1, 0.3, 8
    results, rows = [], []
    for plugin in args.plugin.split(","):
        figures, shares = measure(setup, args, plugin, ways, runs, seconds)
        plain = figures.get("plain", [])
        for way in ways:
            r = {"plugin": plugin, "way": way, "runs": figures[way],
                 "filter-percent": shares.get(way)}
            for key in ("iops", "p99-us", "server-cpu-ms", "all-cpu-ms"):
                column = [f[key] for f in figures[way]]
                r[key] = median(column)
                r[key + " / plain"] = ratio(column, [f[key] for f in plain])
            results.append(r)
            rows.append([plugin, way, round(r["iops"]), round(r["p99-us"]), r["server-cpu-ms"],
                         r["all-cpu-ms"], three(r["iops / plain"]), three(r["p99-us / plain"]),
                         three(r["server-cpu-ms / plain"]), three(r["all-cpu-ms / plain"]),
                         r["filter-percent"]])
    print(table(["plugin", "way", "IOPS", "p99 us", "server CPU ms/1000", "all CPU",
                 "IOPS/plain", "p99/plain", "CPU/plain", "all/plain", "filter %"], rows))
    return results


def three(value):
    return None if value is None else f"{value:.3f}"
