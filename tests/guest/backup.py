#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A restore drill with a real guest: ext4 and an SQLite database that commits all the time. Its
disk is backed up again and again, and some of the backups are killed. Then each backup is restored:
it has the digest that was recorded, its file system and its database are sound, and each
transaction is there that was acknowledged before the backup began. `backup-verify --boot` sees the
guest start from a backup, and says so where it does not. qemu-img reads the files as they are.

2 backups. With NBDMIRROR_LONG 40, and QEMU alone starts the guest from the repository. SEED chooses
the kills."""

import glob
import gzip
import json
import os
import random
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import machine  # noqa: E402
import scene  # noqa: E402

BACKUPS = 40 if scene.LONG else 2
TRIES = 50  # for one backup: a worker that is about to end refuses the next one
MEMORY = 160


class DatabaseBoot(machine.Boot):
    """With sqlite3 and its libraries, and another first process."""

    def __init__(self, directory):
        super().__init__(directory)
        program = shutil.which("sqlite3")
        if program is None:
            raise machine.Unavailable("sqlite3 is not installed")
        told = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        libraries = re.findall(r"(/\S+) \(0x", told)
        folders = {"/"}
        archive = b""
        for path in libraries:
            parts = path.strip("/").split("/")
            for n in range(1, len(parts)):
                folder = "/".join(parts[:n])
                if folder not in folders:
                    folders.add(folder)
                    archive += machine.cpio_entry(folder, 0o40755)
            archive += machine.cpio_entry(path.strip("/"), 0o100755, machine.unpacked(path))
        archive += machine.cpio_entry("sqlite3", 0o100755, machine.unpacked(program))
        archive += machine.cpio_entry("init", 0o100755, machine.unpacked(
            os.path.join(machine.HERE, "database-init")))
        archive += machine.cpio_entry("TRAILER!!!", 0)
        with open(self.initramfs, "ab") as f:  # what comes later replaces what comes before
            f.write(gzip.compress(archive, 1))


def manifests(repository):
    found = {}
    for path in glob.glob(repository + "/backups/*.json"):
        with open(path, encoding="utf-8") as f:
            manifest = json.load(f)
        found[manifest["name"]] = {"sequence": manifest["sequence"], **manifest["disks"][0]}
    return found


def back_up(s, control, repository, rng):
    """{backup: the last transaction that was acknowledged before it began}, and the kills."""
    known, kills, failed = {}, 0, 0
    while len(known) < BACKUPS:
        s.story.wait_for_more(5)
        told, before = s.story.last, set(manifests(repository))
        process = s.spawn("backup", [s.nbdmirror_path, "backup", control, repository,
                                     "--max-downtime", "1s"])
        kill = kills < BACKUPS and (kills == 0 or rng.random() < 0.5)
        if kill:
            time.sleep(rng.random() * 0.8)
            process.kill()
            kills += 1
        status = s.wait_exit(process)
        new = set(manifests(repository)) - before
        known.update(dict.fromkeys(new, told))
        failed = 0 if new or kill else failed + 1
        scene.check(failed < TRIES, f"{failed} backups in a row failed, the last with {status}")
        if failed > 0:
            time.sleep(0.1)
    return known, kills


def check_database(s, disk, told):
    """Start it as after a power cut, and look whether it is sound and complete."""
    copy = s.path("check.img")
    s.run(["cp", "--sparse=always", disk, copy])
    done = subprocess.run(["e2fsck", "-fp", copy], capture_output=True, text=True)
    scene.check(done.returncode in (0, 1), f"e2fsck -fp: {done.stdout}{done.stderr}")
    s.check_clean(copy)
    for name in ("db", "db-journal"):
        machine.contextlib_unlink(s.path(name)).__enter__()
        s.run(["debugfs", "-R", f"dump /{name} {s.path(name)}", copy])
    journal = s.path("db-journal")
    if os.path.exists(journal) and os.path.getsize(journal) == 0:
        os.unlink(journal)  # there was none
    with sqlite3.connect(s.path("db")) as db:
        scene.check(db.execute("PRAGMA integrity_check").fetchone()[0] == "ok", "it is damaged")
        count, last = db.execute("SELECT count(*), ifnull(max(id), 0) FROM t").fetchone()
    scene.check(count == last >= told, f"{count} transactions up to {last}, {told} acknowledged")
    os.unlink(copy)


def drill(s, repository, known):
    restored = s.path("restored")
    recorded = manifests(repository)
    for name, told in known.items():
        machine.contextlib_unlink(restored).__enter__()
        s.nbdmirror("restore", repository, restored, "--at", name)
        digest = s.nbdmirror("digest", restored).split()[0]
        scene.check(digest == recorded[name]["digest"], f"{name}: another digest was recorded")
        check_database(s, restored, told)
    return restored


def command(s):
    """What starts a guest from NBDMIRROR_URI, and prints what that says."""
    words = [machine.QEMU, "-accel", "tcg", "-m", str(MEMORY), "-nodefaults", "-no-user-config",
             "-display", "none", "-machine", "pc", "-no-reboot", "-kernel", s.boot.kernel,
             "-initrd", s.boot.initramfs, "-append",
             "console=ttyS0 panic=-1 no_timer_check mitigations=off random.trust_cpu=on",
             "-serial", "null", "-serial", "stdio"]
    return "exec " + shlex.join(words) + ' -drive if=virtio,format=raw,file="$NBDMIRROR_URI"'


def boot(s, repository, status):
    all_ = manifests(repository)
    newest = max(all_, key=lambda name: all_[name]["sequence"])
    return s.nbdmirror("backup-verify", repository, "--at", newest, "--boot", command(s),
                       "--mark", "LOADED", status=status)


def test(s):
    seed = int(os.environ.get("SEED", random.randrange(1 << 30)))
    s.boot = DatabaseBoot(s.tmp)
    src = s.serve("src", s.make_disk("vda.img"), "--state", s.path("state"), "--",
                  "mirror-state-volatile=yes")
    guest = s.vm("a", [src], memory=MEMORY)
    s.story.wait_for_record(1)
    repository = s.path("repository")
    known, kills = back_up(s, src.control, repository, random.Random(seed))
    last = s.story.last
    guest.kill()
    s.check_story()
    s.nbdmirror("backup-verify", repository)
    restored = drill(s, repository, known)
    scene.note(f"seed {seed}: {len(known)} backups and {kills} kills beside {last} transactions")

    scene.check("booted" in boot(s, repository, 0), "the guest does not start from its backup")
    nothing = s.path("nothing.img")
    with open(nothing, "wb") as f:
        f.truncate(scene.MIB)
    empty = s.path("empty")
    s.nbdmirror("backup", nothing, empty)
    told = boot(s, empty, 5)
    scene.check("'LOADED' was not seen" in told, f"a guest that does not start: {told}")

    # QEMU's own tools, on the files as they are.
    newest = os.path.join(repository, manifests(repository)[list(known)[-1]]["file"])
    converted = s.path("converted")
    s.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", newest, converted])
    s.check_same(restored, converted)
    s.run(["qemu-img", "check", "-q", newest])
    chain = json.loads(s.run(["qemu-img", "info", "--backing-chain", "--output=json", newest]))
    scene.check(len(chain) == len(known), f"the chain has {len(chain)} files")
    if scene.LONG:
        start_from_files(s, newest, known[list(known)[-1]])


def start_from_files(s, newest, told):
    """QEMU alone starts the guest from the repository, on an overlay of its own."""
    overlay = s.path("overlay.qcow2")
    s.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", newest, overlay])
    s.story.close()
    s.story = machine.Story()
    s.vm("b", [{"driver": "qcow2", "file": {"driver": "file", "filename": overlay}}], memory=MEMORY)
    s.story.wait_for_line("LOADED", 300)
    s.story.wait_for_more(3)
    scene.check(s.story.records[0][2] > told, "the guest has forgotten transactions")


scene.main(test, 1800 if scene.LONG else 600)
