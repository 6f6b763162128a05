#!/usr/bin/env python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make a repository of backups by hand, as nbdmirror-repository(5) describes it, so that the
readers are tested with files that the writer did not make.

  make-repository.py NBDMIRROR REPO SHADOW [--disk ID]... [--backups N] [--size BYTES] [--full N]
                     [--step SECONDS] [--seed N]

Each backup changes some clusters at random, and every --full-th one is full.  What each disk held
is kept raw in SHADOW/NAME.ID.  The names of the backups are printed, the oldest first."""

import argparse
import json
import os
import random
import subprocess
import time
import uuid

CLUSTER = 65536


def run(*words):
    return subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout.decode()


def digest(nbdmirror, path, fmt):
    text = run(nbdmirror, "digest", path, "--format", fmt).split()[0]
    record = path + ".nbdmirror-digest"
    if os.path.exists(record):
        os.unlink(record)
    return text


class Disk:
    def __init__(self, args, name, rng):
        self.args, self.id, self.rng = args, name, rng
        self.data = bytearray(args.size)
        self.file = self.backup = None
        os.mkdir(os.path.join(args.repo, name))

    def change(self):
        """A list of (offset, data): the first backup writes a third of the disk."""
        count = self.args.size // CLUSTER
        for _ in range(max(1, count // 3 if self.file is None else count // 16)):
            at = self.rng.randrange(count) * CLUSTER + self.rng.choice((0, 4096))
            data = self.rng.randbytes(self.rng.choice((512, 4096, 30000)))
            self.data[at:at + len(data)] = data[:max(0, self.args.size - at)]
            yield at, data[:max(0, self.args.size - at)]

    def back_up(self, name, full):
        file = f"{self.id}/{name}-{'full' if full else 'inc'}.qcow2"
        path = os.path.join(self.args.repo, file)
        if full:
            list(self.change())
            raw = path + ".raw"
            with open(raw, "wb") as f:
                f.write(self.data)
            run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path)
            os.unlink(raw)
        else:
            run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b",
                os.path.basename(self.file), path)
            commands = []
            for i, (at, data) in enumerate(self.change()):
                piece = os.path.join(self.args.shadow, f"piece.{i}")
                with open(piece, "wb") as f:
                    f.write(data)
                commands += ["-c", f"write -s {piece} {at} {len(data)}"]
            run("qemu-io", "-f", "qcow2", *commands, path)
            for i in range(len(commands) // 2):
                os.unlink(os.path.join(self.args.shadow, f"piece.{i}"))
        with open(os.path.join(self.args.shadow, f"{name}.{self.id}"), "wb") as f:
            f.write(self.data)
        entry = {
            "id": self.id, "kind": "full" if full else "incremental", "reason": "made by a test",
            "file": file, "control": None, "tracker": None, "checkpoint": None,
            "parent": None if full else {"backup": self.backup, "file": self.file},
            "size": self.args.size, "file-bytes": os.path.getsize(path), "copied-bytes": 0,
            "digest": digest(self.args.nbdmirror, path, "qcow2"),
            "file-digest": digest(self.args.nbdmirror, path, "raw"), "pause-ms": 1.5,
            "error": None}
        self.file, self.backup = file, name
        return entry


def main():
    p = argparse.ArgumentParser()
    for word in ("nbdmirror", "repo", "shadow"):
        p.add_argument(word)
    p.add_argument("--disk", action="append", default=[])
    p.add_argument("--backups", type=int, default=6)
    p.add_argument("--size", type=int, default=64 * CLUSTER)
    p.add_argument("--full", type=int, default=1000)
    p.add_argument("--step", type=int, default=86400)
    p.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    args = p.parse_args()
    rng = random.Random(args.seed)
    os.makedirs(os.path.join(args.repo, "backups"))
    os.makedirs(args.shadow, exist_ok=True)
    repository = str(uuid.UUID(int=rng.getrandbits(128)))
    with open(os.path.join(args.repo, "nbdmirror-repository.json"), "w") as f:
        json.dump({"format": "nbdmirror-repository", "version": 1, "requires": [],
                   "uuid": repository, "created-us": 0}, f)
    disks = [Disk(args, name, rng) for name in args.disk or ["vda"]]
    begin = 1735732800  # 2025-01-01 12:00 UTC
    for i in range(args.backups):
        at = begin + i * args.step
        name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at))
        included = f"backups/{name}.files/guest.xml"
        os.mkdir(os.path.join(args.repo, f"backups/{name}.files"))
        with open(os.path.join(args.repo, included), "w") as f:
            f.write(f"<domain>{i}</domain>\n")
        manifest = {
            "format": "nbdmirror-backup", "version": 1, "requires": [], "name": name,
            "sequence": i + 1, "repository": repository, "program": "test", "host": "test",
            "host-id": "test", "begun-us": (at - 5) * 1000000, "ended-us": at * 1000000,
            "consistency": "crash-consistent", "protected": False,
            "disks": [d.back_up(name, i % args.full == 0) for d in disks],
            "includes": [{"source": "/etc/guest.xml", "file": included,
                          "bytes": os.path.getsize(os.path.join(args.repo, included)),
                          "digest": digest(args.nbdmirror, os.path.join(args.repo, included),
                                           "raw")}],
            "hooks": []}
        with open(os.path.join(args.repo, f"backups/{name}.json"), "w") as f:
            json.dump(manifest, f, indent=2)
        print(name)


if __name__ == "__main__":
    main()
