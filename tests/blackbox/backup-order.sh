#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves the order in which a backup becomes durable, so that a power cut leaves a whole backup or
# none: the disk's file, its list of digests, the kept files and their folders are flushed before
# the manifest gets its name, and so is the manifest itself; its folder is flushed afterwards, and
# only then do the checkpoints before it go.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-nbd strace
proves_nothing_under thread
proves_nothing_under address
strace -o /dev/null true 2>/dev/null || skip "strace is not allowed here"
. "$srcdir/tests/blackbox/backup-lib.sh"
repo=$tmp/repo
random_disk "$tmp/a" 4M
serve a "$tmp/a" --state "$tmp/a.state"
A=${control[a]}
run 0 'a full' "$A" "$repo"
qemu-io -f raw -c 'write -q -P 7 1M 64k' "${uri[a]}"
echo kept >"$tmp/kept"
strace -f -y -s 99999 -o "$tmp/trace" -e trace=fsync,fdatasync,rename,write,sendmsg,sendto,unlink \
  "$NBDMIRROR" backup "$A" "$repo" --incremental --include "$tmp/kept" >"$tmp/out" 2>&1 ||
  fail "$(cat "$tmp/out")"
"$python" - "$tmp/trace" "$repo" <<'END' || fail "$(grep "repo\|checkpoint" "$tmp/trace")"
import re, sys
repo = sys.argv[2]
did = []  # ("sync", path), ("rename", from, to), ("remove-checkpoint",)
for line in open(sys.argv[1], encoding="utf-8", errors="replace"):
    if m := re.search(r"f(?:data)?sync\(\d+<([^>]*)>", line):
        did.append(("sync", m[1]))
    elif m := re.search(r'rename\("([^"]*)", "([^"]*)"', line):
        did.append(("rename", m[1], m[2]))
    elif "mirror-checkpoint-remove" in line:
        did.append(("remove-checkpoint",))
manifest = next(i for i, x in enumerate(did) if x[0] == "rename" and x[2].endswith("Z.json")
                or x[0] == "rename" and re.search(r"Z-\d+\.json$", x[2]))
before = {x[1] for x in did[:manifest] if x[0] == "sync"}
name = re.search(r"/backups/(.*)\.json", did[manifest][2])[1]
for path in (f"{repo}/a/{name}-inc.qcow2", f"{repo}/a", f"{repo}/a/{name}.digests.tmp",
             f"{repo}/backups/{name}.files/1-kept", f"{repo}/backups/{name}.files",
             did[manifest][1]):
    assert path in before, f"{path} was not flushed before the manifest"
after = did[manifest + 1:]
assert ("sync", f"{repo}/backups") in after, "the manifest's folder was not flushed"
removed = [i for i, x in enumerate(did) if x[0] == "remove-checkpoint"]
flushed = manifest + 1 + after.index(("sync", f"{repo}/backups"))
assert removed and min(removed) > flushed, "the old checkpoint went too early"
END
