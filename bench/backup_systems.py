# SPDX-License-Identifier: LGPL-2.1-or-later
"""The contestants of `bench/run backup`.  Each serves a raw disk, or reads one that nbdkit serves,
and offers the same:

  uri                    where a guest connects
  back_up (full, limit)  make a backup; limit in bytes a second, 0 for none
  restore (path)         restore the last one to a new raw file
  cpu ()                 processor seconds so far, of what serves the disk
  repo                   the directory of the backups
  close ()

back_up and restore return the processor seconds of the commands that they ran.  What they write is
on the disk afterwards: who does not flush by himself is followed by an fsync. """

import json
import os
import shutil
import subprocess

import common
import qmp

LIMIT_S = 3600


def run(*argv, env=None):
    """Run it to its end.  Processor seconds."""
    if env:
        argv = ("env", *(f"{k}={v}" for k, v in env.items()), *argv)
    return common.Run(list(argv), timeout=LIMIT_S).cpu


def sync_all(folder):
    for where, _, names in os.walk(folder):
        for name in names:
            fd = os.open(os.path.join(where, name), os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)


class System:
    needs, limited = (), False

    def __init__(self, setup, disk):
        self.setup, self.disk = setup, disk
        self.repo = os.path.join(setup.disks, "repository")
        shutil.rmtree(self.repo, ignore_errors=True)
        self.begin()

    def cpu(self):
        return self.server.cpu()

    def close(self):
        self.server.stop()
        shutil.rmtree(self.repo, ignore_errors=True)


class Nbdmirror(System):
    """`nbdmirror serve --state` and `nbdmirror backup`."""

    limited = True

    def begin(self):
        state = os.path.join(self.setup.disks, "state")
        if os.path.exists(state):
            os.unlink(state)
        self.server = common.serve(self.setup, "source", self.disk, "--state", state)
        self.uri = self.server.uri

    def back_up(self, full, limit=0):
        words = ["--bandwidth", str(limit)] if limit else []
        return run(self.setup.nbdmirror, "backup", self.server.control, self.repo,
                   "--full" if full else "--incremental", "--disk-name",
                   self.server.control + "=disk", *words)

    def restore(self, path):
        return run(self.setup.nbdmirror, "restore", self.repo, path)


class Qemu(System):
    """qemu-storage-daemon: blockdev-backup into qcow2 files, incremental by a dirty bitmap, which
    is in memory only."""

    needs, limited = ("qemu-storage-daemon", "qemu-img"), True

    def begin(self):
        sock = os.path.join(self.setup.tmp, "qemu.sock")
        monitor = os.path.join(self.setup.tmp, "qemu.qmp")
        self.server = common.Server(self.setup, [
            "qemu-storage-daemon", "--chardev", f"socket,path={monitor},server=on,wait=off,id=c",
            "--monitor", "chardev=c",
            "--blockdev", f"driver=file,node-name=file,filename={self.disk},discard=unmap",
            "--blockdev", "driver=raw,node-name=disk,file=file,discard=unmap",
            "--nbd-server", f"addr.type=unix,addr.path={sock},max-connections=0",
            "--export", "type=nbd,id=e,node-name=disk,name=disk,writable=on"], sock)
        self.uri = f"nbd+unix:///disk?socket={sock}"
        self.qmp = qmp.QMP(monitor)
        self.qmp.command("block-dirty-bitmap-add", {"node": "disk", "name": "b"})
        os.mkdir(self.repo)
        self.last, self.number = None, 0

    def back_up(self, full, limit=0):
        self.number += 1
        path = os.path.join(self.repo, f"{self.number}.qcow2")
        words = [] if full else ["-b", self.last, "-F", "qcow2"]
        size = [str(os.path.getsize(self.disk))] if full else []
        cpu = run("qemu-img", "create", "-q", "-f", "qcow2", *words, path, *size)
        self.qmp.command("blockdev-add", {"driver": "qcow2", "node-name": "t", "discard": "unmap",
                                          "file": {"driver": "file", "filename": path}})
        job = {"job-id": "j", "device": "disk", "target": "t", "speed": limit}
        if full:
            self.qmp.command("block-dirty-bitmap-clear", {"node": "disk", "name": "b"})
            self.qmp.command("blockdev-backup", {**job, "sync": "full"})
        else:
            self.qmp.command("blockdev-backup", {**job, "sync": "incremental", "bitmap": "b"})
        event = self.qmp.event(["BLOCK_JOB_COMPLETED"], LIMIT_S)
        if event is None or "error" in event["data"]:
            raise RuntimeError(f"blockdev-backup: {event}")
        self.qmp.command("blockdev-del", {"node-name": "t"}, timeout=LIMIT_S)
        sync_all(self.repo)
        self.last = path
        return cpu

    def restore(self, path):
        cpu = run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.last, path)
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        return cpu


class Pull(Qemu):
    """What virtnbdbackup does, without libvirt: QEMU exports the disk with its dirty bitmap, and a
    program in Python reads what is allocated, or dirty, with libnbd and writes it one after the
    other into a file.  (virtnbdbackup also has QEMU copy old data aside before a guest overwrites
    it, which costs time that is not counted here.)"""

    needs, limited = ("qemu-storage-daemon",), False

    def back_up(self, full, limit=0):
        self.number += 1
        name = f"backup{self.number}"
        export = {"type": "nbd", "id": name, "node-name": "disk", "name": name}
        if not full:
            self.qmp.command("block-dirty-bitmap-disable", {"node": "disk", "name": "b"})
            export["bitmaps"] = ["b"]
        self.qmp.command("block-export-add", export)
        self.last = os.path.join(self.repo, f"{self.number}.data")
        cpu = run("/usr/bin/python3", os.path.join(common.SRCDIR, "bench/pull.py"), "read",
                  self.uri.replace("/disk?", f"/{name}?"), "-" if full else "b", self.last)
        self.qmp.command("block-export-del", {"id": name, "mode": "hard"})
        self.qmp.event(["BLOCK_EXPORT_DELETED"], 30)
        self.qmp.command("block-dirty-bitmap-clear", {"node": "disk", "name": "b"})
        if not full:
            self.qmp.command("block-dirty-bitmap-enable", {"node": "disk", "name": "b"})
        return cpu

    def restore(self, path):
        files = [os.path.join(self.repo, f"{n + 1}.data") for n in range(self.number)]
        return run("/usr/bin/python3", os.path.join(common.SRCDIR, "bench/pull.py"), "write", path,
                   str(os.path.getsize(self.disk)), *files)


class Reader(System):
    """A program that reads the raw image, whoever writes to it."""

    def begin(self):
        self.server = common.nbdkit(self.setup, "reader", "file", self.disk)
        self.uri = self.server.uri
        self.number = 0
        self.env = {"BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
                    "BORG_BASE_DIR": os.path.join(self.setup.disks, "home"),
                    "RESTIC_PASSWORD": "bench",
                    "RESTIC_CACHE_DIR": os.path.join(self.setup.disks, "home")}
        self.make()


class Borg(Reader):
    """borg create, without encryption; else its defaults."""

    needs = ("borg",)

    def make(self):
        run("borg", "init", "--encryption=none", self.repo, env=self.env)

    def back_up(self, full, limit=0):
        self.number += 1
        cpu = run("borg", "create", "--files-cache=disabled", f"{self.repo}::{self.number}",
                  self.disk, env=self.env)
        sync_all(self.repo)
        return cpu

    def restore(self, path):
        return run("sh", "-c", f'borg extract --stdout "{self.repo}::{self.number}" |'
                   f' cp --sparse=always /dev/stdin "{path}" && sync "{path}"', env=self.env)


class Restic(Reader):
    """restic backup, with its defaults; it always encrypts."""

    needs = ("restic",)

    def make(self):
        run("restic", "-q", "-r", self.repo, "init", env=self.env)

    def back_up(self, full, limit=0):
        self.number += 1
        cpu = run("restic", "-q", "-r", self.repo, "backup", "--force", self.disk, env=self.env)
        sync_all(self.repo)
        return cpu

    def restore(self, path):
        return run("sh", "-c", f'restic -q -r "{self.repo}" dump latest "{self.disk}" |'
                   f' cp --sparse=always /dev/stdin "{path}" && sync "{path}"', env=self.env)


SYSTEMS = {"nbdmirror": Nbdmirror, "qemu": Qemu, "pull": Pull, "borg": Borg, "restic": Restic}


def manifest(repo):
    """The last one of a repository of nbdmirror's."""
    folder = os.path.join(repo, "backups")
    found = []
    for name in os.listdir(folder):
        if name.endswith(".json"):
            with open(os.path.join(folder, name), encoding="utf-8") as f:
                found.append(json.load(f))
    return max(found, key=lambda m: m["sequence"])


def bytes_of(folder):
    """What the files of a directory take up."""
    out = subprocess.run(["du", "-s", "--block-size=1", folder], capture_output=True, text=True,
                         check=True).stdout
    return int(out.split()[0])
