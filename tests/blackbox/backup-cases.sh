#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves which disks of a backup are full, alone, and for which reason: a disk without a record, a
# checkpoint, file or manifest that is missing, a damaged manifest, a disk of another size; that two
# repositories do not disturb each other, that checkpoints go that no backup needs any more, that a
# clock that was set back changes nothing, and that a guest that is off is incremental by its state
# file.  A disk that was written to behind its server's back, or added, is full, and others are not.
# A disk that has the name of another guest's disk is refused.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-nbd
proves_nothing_under thread
proves_nothing_under address
. "$srcdir/tests/blackbox/backup-lib.sh"
repo=$tmp/repo
two_disks

# ---- full, and why -------------------------------------------------------------------------------
# A run that is refused makes no repository.
run 7 'a: it cannot be incremental: there is no earlier backup' "$A" "$repo" --incremental
run 1 "a.image: there is no such control socket" "$tmp/a.image" "$repo"
run 1 'and no such image' "$tmp/a.image" "$repo" --state "$tmp/a.image=$tmp/a.state"
run 0 'a: full, 4.01 MiB of 8.00 MiB: there is no earlier backup' "$A" "$repo" --dry-run
grep -q '^how long copying takes is not known' "$tmp/out" || fail "$(cat "$tmp/out")"
truncate -s 1G "$tmp/hole"
printf x | dd of="$tmp/hole" bs=1 seek=500M conv=notrunc status=none
run 0 'hole: full, 4.00 KiB of 1.00 GiB: ' "$tmp/hole" "$repo" --dry-run
run 0 'copying takes about 4.0 s' "$A" "$B" "$tmp/hole" "$repo" --dry-run --bandwidth 1M
[ ! -e "$repo" ] || fail "a refused backup has left a repository"
run 3 'No such file or directory' "$A" "$repo/none" --dry-run
run 0 'b: full: no state file is kept (see --state)' "$A" "$B" "$repo"
run 0 'a: incremental:' "$A" "$B" "$repo"
cp "$tmp/out" "$tmp/told"
run 0 'a: incremental, 0 B of 8.00 MiB: ' "$A" "$B" "$repo" --dry-run
grep -q '^copying takes about .* ms$' "$tmp/out" || fail "$(cat "$tmp/out")"
grep -qF 'b: full: no state file is kept (see --state)' "$tmp/told" || fail "b: $(cat "$tmp/told")"
run 0 'a: full: asked for' "$A" "$repo" --full
run 0 'a incremental' "$A" "$repo" --no-progress
[ "$(wc -l <"$tmp/out")" = 1 ] || fail "more than a line: $(cat "$tmp/out")"
run 0 'a: incremental:' "$A" "$repo" --incremental
name=$(nbdmirror checkpoint list "$A" | grep -o '^backup-[^ ]*')
nbdmirror checkpoint remove "$A" "$name" 2>/dev/null
run 0 "a: full: the disk has no checkpoint '$name' any more" "$A" "$repo"
mv "$(newest a)" "$tmp/away"
run 0 'No such file or directory' "$A" "$repo"
same a "$tmp/a"
truncate -s +1 "$(newest a)"
run 0 'bytes, and' "$A" "$repo"
same a "$tmp/a"
echo '{' >"$(newest a manifest)"
run 0 'the manifest cannot be read' "$A" "$repo"
grep -q 'a: full: ' "$tmp/out" || fail "a damaged manifest: $(cat "$tmp/out")"
same a "$tmp/a"
run 0 'a: incremental:' "$A" "$repo"

# ---- a clock that was set back: the order of backups is not that of their times ------------------
sed -i 's/"\(begun\|ended\)-us": [0-9]*/"\1-us": 4102444800000000/' "$(newest a manifest)"
run 0 'a: incremental:' "$A" "$repo"
same a "$tmp/a"
rm -f "$tmp/restored"
nbdmirror restore "$repo" "$tmp/restored" --disk a 2>/dev/null || fail "restore ended with $?"
cmp "$tmp/a" "$tmp/restored" || fail "another backup than the last one was restored"

# ---- two repositories ----------------------------------------------------------------------------
run 0 'a: full: there is no earlier backup' "$A" "$tmp/other"
run 0 'a: incremental:' "$A" "$repo"
run 0 'a: incremental:' "$A" "$tmp/other"
checkpoints () { nbdmirror checkpoint list "$A" | grep -o '^backup-[^ ]*' | sort; }
[ "$(checkpoints | wc -l)" = 2 ] || fail "two checkpoints expected: $(checkpoints)"

# ---- what a prune has dropped, and what a killed run has left, is dropped from the disk ----------
has_to_exit 0 nbdmirror backup-prune "$tmp/other" --keep-last 1
for one in $(checkpoints); do # one more of each repository
  nbdmirror checkpoint add "$A" "${one:0:15}-20200101T000000Z" >"$tmp/out" 2>&1 ||
    fail "checkpoint add: $(cat "$tmp/out")"
done
kept=$(checkpoints | grep "^$(newest a checkpoint | grep -o 'backup-........')")
run 0 'a: incremental:' "$A" "$tmp/other"
[ "$(checkpoints | wc -l)" = 3 ] || fail "one checkpoint has to go: $(checkpoints)"
for one in $kept; do checkpoints | grep -qx "$one" || fail "the other repository's went"; done
run 0 'a: incremental:' "$A" "$repo"
same a "$tmp/a"
[ "$(checkpoints | wc -l)" = 2 ] || fail "two checkpoints expected: $(checkpoints)"

# ---- two guests call their disks alike -----------------------------------------------------------
also_a=(--disk-name "$B=a")
for mode in --auto --incremental --dry-run; do
  run 7 "the last backup with this name is that of $A" "$B" "$repo" "${also_a[@]}" "$mode"
done
run 0 'a: full: asked for' "$B" "$tmp/other" "${also_a[@]}" --full
run 7 "the last backup with this name is that of $B" "$A" "$tmp/other" # not for good
run 0 'a: full: asked for' "$A" "$tmp/other" --full
run 0 'a: incremental:' "$A" "$tmp/other"
stop a
serve elsewhere "$tmp/a" --state "$tmp/a.state"
run 0 'a: incremental:' "${control[elsewhere]}" "$repo" --disk-name "${control[elsewhere]}=a"
stop elsewhere
serve a "$tmp/a" --state "$tmp/a.state"
same a "$tmp/a"

# ---- a disk that is no raw file ------------------------------------------------------------------
qemu-img convert -O qcow2 "$tmp/a" "$tmp/c"
serve c "$tmp/c" --format qcow2 --state "$tmp/c.state"
run 0 'c: full: there is no earlier backup' "${control[c]}" "$repo"
qemu-io -f raw -c 'write -q -P 5 1M 64k' "${uri[c]}"
run 0 'c: incremental:' "${control[c]}" "$repo"
stop c
qemu-img compare -q -f qcow2 -F qcow2 "$(newest c)" "$tmp/c" || fail "c differs"

# ---- a disk of another size, and a guest that is off ---------------------------------------------
stop a
stop b
spawn user qemu-nbd -t -e 0 -k "$tmp/user.sock" -f raw "$tmp/a"
wait_for_socket "$tmp/user.sock" user
run 7 'is in use by QEMU' "$tmp/a" "$repo"
stop user
if [ "$(stat -f -c %T "$tmp")" != tmpfs ]; then
  run 0 'a: incremental:' "$tmp/a" "$repo" --state "$tmp/a=$tmp/a.state"
  same a "$tmp/a"
fi
truncate -s 9M "$tmp/b"
serve b "$tmp/b" --state "$tmp/b.state"
serve a "$tmp/a" --state "$tmp/a.state"
run 0 'a: incremental:' "$A" "$B" "$repo"
same b "$tmp/b"
stop b
truncate -s 10M "$tmp/b"
cp "$tmp/b" "$tmp/restored"
cp "$tmp/b.state" "$tmp/restored.state"
serve b "$tmp/restored" --state "$tmp/restored.state" # it is no resized disk, but another file
run 1 'b: its state file is of another size than the disk' "$A" "$B" "$repo"
grep -q "a incremental.*b FAILED" "$tmp/out" ||
  fail "the other disk was not backed up: $(cat "$tmp/out")"
stop b
serve b "$tmp/b" --state "$tmp/b.state"
run 0 'b: full: the disk had 9437184 bytes at the last backup and has 10485760 now' "$A" "$B" \
  "$repo"
grep -q 'a: incremental' "$tmp/out" || fail "the other disk is not incremental: $(cat "$tmp/out")"
same b "$tmp/b"

# ---- one disk was written to behind its server's back, another one was added ---------------------
stop a
printf 'behind' | dd of="$tmp/a" bs=1 seek=70000 conv=notrunc status=none
serve a "$tmp/a" --state "$tmp/a.state"
random_disk "$tmp/added" 1M
serve added "$tmp/added" --state "$tmp/added.state"
run 0 'is inconsistent: ' "$A" "$B" "${control[added]}" "$repo"
for disk in a b added; do same $disk "$tmp/$disk"; done
nbdmirror backup-list "$repo" | tail -n 3 >"$tmp/out"
grep -q '^  a: full, .*: checkpoint .* is inconsistent' "$tmp/out" || fail "list: $(cat "$tmp/out")"
grep -q '^  b: incremental, [^:]*$' "$tmp/out" || fail "list: $(cat "$tmp/out")"
grep -q '^  added: full, .*: there is no earlier' "$tmp/out" || fail "list: $(cat "$tmp/out")"
run 0 'added: incremental:' "$A" "$B" "${control[added]}" "$repo"
