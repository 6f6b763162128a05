#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves what a backup does where something is not as it should be: a disk without a record, a
# checkpoint, file or manifest that is missing, a damaged manifest or a disk of another size makes
# that disk full, alone, with the reason; two repositories do not disturb each other; two backups of
# one disk at once, another's job and a handed-over disk are refused; a repository that is full or
# read-only fails and stays as it was; a guest that is off is incremental by its state file; the
# command that thaws runs always.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-nbd
proves_nothing_under thread
proves_nothing_under address

repo=$tmp/repo
serve () { # serve NAME DISK [OPTIONS]
  local name=$1 disk=$2; shift 2
  rm -f "$tmp/$name.sock" "$tmp/$name.control"
  start_server "$name" "$disk" "$@" -- mirror-state-volatile=yes
}
# run STATUS WORD ARGS...: a backup that ends with STATUS and tells WORD.
run () {
  local want=$1 word=$2 status=0; shift 2
  nbdmirror backup "$@" >"$tmp/out" 2>&1 || status=$?
  [ $status = "$want" ] || fail "exit status $status instead of $want: $(cat "$tmp/out")"
  grep -qF -- "$word" "$tmp/out" || fail "'$word' is not told: $(cat "$tmp/out")"
}
backups () { find "$1/backups" -name '*.json' | wc -l; }
newest () { "$python" "$srcdir/tests/blackbox/newest-backup.py" "$repo" "$1" "${2:-file}"; }
same () { qemu-img compare -q -f qcow2 -F raw "$(newest "$1")" "$2" || fail "$1 differs"; }

random_disk "$tmp/a" 8M
random_disk "$tmp/b" 8M
serve a "$tmp/a" --state "$tmp/a.state"
serve b "$tmp/b"
A=${control[a]} B=${control[b]}

# ---- full, and why -------------------------------------------------------------------------------
run 7 'a: it cannot be incremental: there is no earlier backup' "$A" "$repo" --incremental
[ "$(backups "$repo")" = 0 ] || fail "a refused backup has left one"
run 0 'b: full: the server keeps no state file' "$A" "$B" "$repo"
run 0 'a: incremental:' "$A" "$B" "$repo"
run 0 'b: full: the server keeps no state file' "$A" "$B" "$repo"
run 0 'a: full: asked for' "$A" "$repo" --full
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
[ "$(nbdmirror checkpoint list "$A" | grep -c '^backup-')" = 2 ] || fail "two checkpoints expected"

# ---- two at once, and jobs of others -------------------------------------------------------------
spawn slow "$NBDMIRROR" backup "$A" "$repo" --full --bandwidth 1M
is_copying () { [ "$(status_of "$A" state)" = copying ]; }
wait_for 20 is_copying
run 7 'is being written to by process' "$A" "$repo"
run 7 'another job is under way' "$A" "$tmp/other"
run 0 'b full' "$B" "$repo"
kill -INT "${pid[slow]}"
wait_exit slow 20
[ $status = 6 ] || fail "exit status $status after SIGINT"
[ -z "$(find "$repo" -name '*.begun')" ] || fail "a cancelled backup has left its mark"
run 0 'a: incremental:' "$A" "$repo"
same a "$tmp/a"

# ---- the server of one disk is killed, and the other disk has a backup ---------------------------
spawn slow "$NBDMIRROR" backup "$A" "$B" "$repo" --full --bandwidth 4M
wait_for 20 is_copying
stop a KILL
wait_exit slow 60
[ "$status" = 1 ] || fail "exit status $status after a server was killed: $(cat "$tmp/slow.log")"
serve a "$tmp/a" --state "$tmp/a.state"
run 0 'a full' "$A" "$B" "$repo" --full
[ -z "$(find "$repo" -name '*.begun')" ] || fail "a mark was left"

# ---- a disk that is no raw file ------------------------------------------------------------------
qemu-img convert -O qcow2 "$tmp/a" "$tmp/c"
serve c "$tmp/c" --format qcow2 --state "$tmp/c.state"
run 0 'c: full: there is no earlier backup' "${control[c]}" "$repo"
qemu-io -f raw -c 'write -q -P 5 1M 64k' "${uri[c]}"
run 0 'c: incremental:' "${control[c]}" "$repo"
stop c
qemu-img compare -q -f qcow2 -F qcow2 "$(newest c)" "$tmp/c" || fail "c differs"

# ---- a repository that is full, and one that is read-only ----------------------------------------
if mkdir "$tmp/small" && mount -t tmpfs -o size=7m none "$tmp/small" 2>/dev/null; then
  end_small () { umount -l "$tmp/small"; }
  at_exit end_small
  run 0 'a full' "$A" "$tmp/small"
  before=$(sha256sum "$tmp/small"/a/*.qcow2)
  run 3 'a: ' "$A" "$tmp/small" --full
  [ "$before" = "$(sha256sum "$tmp/small"/a/*.qcow2)" ] || fail "a full repository was changed"
  run 0 'a: incremental:' "$A" "$repo"
  mount -o remount,ro "$tmp/small"
  run 3 'Read-only file system' "$A" "$tmp/small"
else
  note "no file system can be mounted: a full and a read-only repository are not tested"
fi

# ---- the commands around the instant -------------------------------------------------------------
hooks=(--before-hold-exec "echo before >>'$tmp/hooks'" --after-release-exec
  "echo after >>'$tmp/hooks'")
run 0 'guest frozen' "$A" "$repo" "${hooks[@]}"
[ "$(tr '\n' ' ' <"$tmp/hooks")" = "before after " ] || fail "hooks: $(cat "$tmp/hooks")"
run 0 'crash-consistent' "$A" "$repo" --before-hold-exec false
run 0 'not done within 200 ms' "$A" "$repo" --before-hold-exec 'sleep 20' --hook-limit 200ms
: >"$tmp/hooks"
spawn killed "$NBDMIRROR" backup "$A" "$repo" \
  --before-hold-exec "echo before >>'$tmp/hooks'; sleep 1" \
  --after-release-exec "echo after >>'$tmp/hooks'"
wait_for 20 grep -q before "$tmp/hooks"
kill -KILL "${pid[killed]}"
wait_exit killed 20
wait_for 20 grep -q after "$tmp/hooks"
is_detached () { [ "$(status_of "$A" worker)" != attached ]; } # its worker ends by itself
wait_for 20 is_detached
run 0 'what it has left was removed' "$A" "$repo"
same a "$tmp/a"

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
rm "$tmp/b.state" # a state file is of one size
serve b "$tmp/b" --state "$tmp/b.state"
run 0 'b: full: the disk had 9437184 bytes at the last backup and has 10485760 now' "$A" "$B" \
  "$repo"
grep -q 'a: incremental' "$tmp/out" || fail "the other disk is not incremental: $(cat "$tmp/out")"
same b "$tmp/b"
