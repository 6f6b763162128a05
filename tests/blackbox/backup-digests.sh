#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that an incremental backup computes the digest of the whole disk without reading what was
# not changed; that it is right for changes, trims and zeroes, and after a prune or a merge; that a
# list that is missing or damaged costs one reading of the disk and nothing else; and that no list
# is left that nobody needs.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-nbd
proves_nothing_under thread
proves_nothing_under address

repo=$tmp/repo
random_disk "$tmp/a" 4M
truncate -s 20000001 "$tmp/a"
start_server a "$tmp/a" --state "$tmp/a.state" -- mirror-state-volatile=yes
A=${control[a]}
put () { # put SEED: a guest writes, zeroes and trims
  "$python" - "${uri[a]}" "$1" <<'END'
import nbd, random, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
rng = random.Random(int(sys.argv[2]))
for i in range(8):
    offset = rng.randrange(0, 20000001 - 300000)
    h.pwrite(rng.randbytes(rng.choice((1, 4096, 200000))), offset)
    h.zero(rng.choice((512, 65536, 300000)), rng.randrange(0, 20000001 - 300000))
    h.trim(131072, rng.randrange(0, 30) * 65536)
h.shutdown()
END
}
newest () { "$python" "$srcdir/tests/blackbox/newest-backup.py" "$repo" a "$1"; }
# back_up [OPTIONS...]: and its digest has to be the disk's.  What it says is in $tmp/said.
back_up () {
  nbdmirror backup "$A" "$repo" "$@" >"$tmp/said" 2>&1 || fail "backup: $(cat "$tmp/said")"
  [ "$(newest digest)" = "$(nbdmirror digest "$tmp/a" | cut -d' ' -f1)" ] ||
    fail "the digest is not the disk's: $(cat "$tmp/said")"
  rm -f "$tmp/a.nbdmirror-digest"
}
read_whole () { grep -q 'the whole disk is read' "$tmp/said"; }
# Every manifest names a list, and no other list is there.
lists () {
  "$python" - "$repo" <<'END' || fail "the lists are not those of the manifests"
import glob, json, os, sys
repo = sys.argv[1]
named = [d["digests"]["file"] for path in glob.glob(repo + "/backups/*.json")
         for d in json.load(open(path))["disks"]]
there = [os.path.relpath(path, repo) for path in glob.glob(repo + "/a/*.digests*")]
assert sorted(named) == sorted(there), (named, there)
END
}
# merge N: take out the Nth backup, counted from 0.
merge () {
  local name
  name=$(nbdmirror backup-list "$repo" --json | "$python" -c '
import json, sys
print(json.load(sys.stdin)[int(sys.argv[1])]["name"])' "$1")
  nbdmirror backup-merge "$repo" "$name" >"$tmp/out" 2>&1 || fail "merge: $(cat "$tmp/out")"
}

# ---- only what was changed is read: the full file is damaged before the digest is computed -------
# And each file is read once, by us: the only qemu-nbd is the one that writes it.
mkdir "$tmp/bin"
printf '#!/bin/sh\necho "$$" >>%q\nexec %q "$@"\n' "$tmp/started" "$(type -P qemu-nbd)" \
  >"$tmp/bin/qemu-nbd"
chmod +x "$tmp/bin/qemu-nbd"
PATH=$tmp/bin:$PATH back_up
full=$(newest file)
put 1
PATH=$tmp/bin:$PATH back_up
[ "$(wc -l <"$tmp/started")" = 2 ] || fail "2 backups started $(wc -l <"$tmp/started") qemu-nbd"
put 11
cp "$full" "$tmp/good"
at=$(qemu-img map --output=json "$full" | "$python" -c '
import json, sys
print(next(e["offset"] + 100 for e in json.load(sys.stdin) if e["data"]))')
back_up --after-release-exec "printf x | dd of='$full' bs=1 seek=$at conv=notrunc status=none"
! read_whole || fail "the whole disk was read"
has_to_exit 5 nbdmirror backup-verify "$repo"
cp "$tmp/good" "$full"
has_to_exit 0 nbdmirror backup-verify "$repo"

# ---- a list that is missing, and one that is damaged ---------------------------------------------
put 2
manifest=$(newest manifest)
sed -i '/"digests": {/,/}/c\      "digests": null,' "$manifest" # as an older version has written it
back_up
read_whole || fail "a missing list was not missed"
put 3
back_up
! read_whole || fail "the whole disk was read though there is a complete list"
put 4
printf x | dd of="$(newest list)" bs=1 seek=30 conv=notrunc status=none
has_to_exit 0 nbdmirror backup-verify "$repo"
grep -q 'list of digests' "$tmp/err" || fail "verify says nothing of the list: $(cat "$tmp/err")"
back_up
read_whole || fail "a damaged list was believed"
for i in 5 6 7; do put $i; back_up; done

# ---- a full file takes over the next one, and an incremental one those before it ----------------
: >"$repo/a/20200101T000000Z.digests.tmp"
while [ "$(find "$repo/backups" -name '*.json' | wc -l)" -gt 4 ]; do merge 0; done
lists
put 8
back_up
! read_whole || fail "after the full backup was merged: $(cat "$tmp/said")"
merge 2
lists
put 9
back_up
! read_whole || fail "after one in the middle was merged: $(cat "$tmp/said")"
has_to_exit 0 nbdmirror backup-verify "$repo"
traced=()
! strace -o /dev/null true 2>/dev/null ||
  traced=(strace -f -y -o "$tmp/trace" -e 'trace=unlink,fsync')
"${traced[@]}" "$NBDMIRROR" backup-prune "$repo" --keep-last 1 >"$tmp/out" 2>&1 ||
  fail "prune: $(cat "$tmp/out")"
lists
# The names of files are gone for good before the manifests are removed that name them.
[ ${#traced[@]} = 0 ] || awk '
  /unlink\(.*\.qcow2"/ { open = 1 } /fsync\(.*\/a>\)/ { open = 0 }
  /unlink\(.*backups\/[^"]*\.json"/ { seen = 1; if (open) exit 1 }
  END { if (!seen) exit 1 }' "$tmp/trace" || fail "a manifest went first: $(cat "$tmp/trace")"
put 10
back_up
! read_whole || fail "after all were pruned but one: $(cat "$tmp/said")"
has_to_exit 0 nbdmirror backup-verify "$repo"
