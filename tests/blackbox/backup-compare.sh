#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that `backup-verify --compare` finds what was written behind the tracking's back, names it,
# and has it copied by the next backup, also after a crash of the disk's server; that it finds
# nothing while a guest writes; and that it says which disks it cannot compare.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-nbd
proves_nothing_under thread
proves_nothing_under address

repo=$tmp/repo
size=$((12 * 1048576 + 700)) # qcow2 files have whole sectors
random_disk "$tmp/a" $size
random_disk "$tmp/b" 1M
start_server a "$tmp/a" --state "$tmp/a.state" -- mirror-state-volatile=yes
start_server b "$tmp/b"
A=${control[a]}
has_to_exit 0 nbdmirror backup "$A" "$repo"
newest () { "$python" "$srcdir/tests/blackbox/newest-backup.py" "$repo" a "$1"; }
compare () { nbdmirror backup-verify "$repo" --compare "$@"; }
# value NAME: of the first disk in the last report.
value () { "$python" -c '
import json, sys
print(json.load(open(sys.argv[1]))[0][sys.argv[2]])' "$tmp/out" "$1"; }

# ---- nothing was missed --------------------------------------------------------------------------
has_to_exit 0 compare
grep -q '^a: good: 0 bytes differ' "$tmp/out" || fail "nothing was changed: $(cat "$tmp/out")"
start_guest guest "${uri[a]}" --rate 300 --seconds 60
wait_for 20 guest_changed guest 100
has_to_exit 0 compare --json
[ "$(value different-bytes)" -gt 0 ] || fail "what the guest has changed is not seen"
stop guest

# ---- something was missed ------------------------------------------------------------------------
has_to_exit 0 nbdmirror backup "$A" "$repo"
plant () { # plant OFFSET: a write that does not pass the server
  printf 'behind' | dd of="$tmp/a" bs=1 seek="$1" conv=notrunc status=none
}
plant 5000000
plant $((size - 6))
has_to_exit 5 compare
for missed in "4096 bytes at offset 4997120" "700 bytes at offset 12582912"; do
  grep -q "^not recorded: $missed$" "$tmp/out" || fail "not named: $(cat "$tmp/out")"
done
grep -q '^a: missed: 4796 of 4796 bytes' "$tmp/out" || fail "not counted: $(cat "$tmp/out")"
# It is recorded now, and a crash of the server does not forget it.
has_to_exit 0 compare
stop a KILL
rm -f "$A" "$tmp/a.sock"
start_server a "$tmp/a" --state "$tmp/a.state" -- mirror-state-volatile=yes
has_to_exit 0 compare
has_to_exit 0 nbdmirror backup "$A" "$repo" --incremental
[ "$(newest copied-bytes)" -le 131072 ] || fail "more than that was copied: $(newest copied-bytes)"
[ "$(newest digest)" = "$(nbdmirror digest "$tmp/a" | cut -d' ' -f1)" ] ||
  fail "the backup does not hold what was missed"
has_to_exit 0 compare

# ---- a job that is under way copies it too -------------------------------------------------------
spawn job "$NBDMIRROR" mirror "$A" "$tmp/m"
is_ready () { [ "$(status_of "$A" state)" = ready ]; }
wait_for 20 is_ready
plant 3000000
has_to_exit 5 compare
is_equal () { cmp -s "$tmp/a" "$tmp/m"; }
wait_for 20 is_equal
stop job INT

# ---- the same without a repository ---------------------------------------------------------------
cp "$tmp/a" "$tmp/copy"
nbdmirror checkpoint add "$A" now
plant 1000
has_to_exit 5 nbdmirror checkpoint verify "$A" now "$tmp/copy" --mark
has_to_exit 0 nbdmirror checkpoint verify "$A" now "$tmp/copy"
has_to_exit 2 nbdmirror checkpoint verify "$tmp/a.state" now "$tmp/copy" --disk "$tmp/a" --mark

# ---- disks that cannot be compared ---------------------------------------------------------------
has_to_exit 0 nbdmirror backup "$A" "${control[b]}" "$repo"
has_to_exit 1 compare
grep -q '^a: good' "$tmp/out" || fail "the other disk: $(cat "$tmp/out")"
grep -q '^b: not compared: the backup has added no checkpoint' "$tmp/out" ||
  fail "$(cat "$tmp/out")"
has_to_exit 0 compare --disk a
has_to_exit 1 compare --disk a --control "a=$tmp/a"
grep -q 'is no control socket' "$tmp/out" || fail "an image: $(cat "$tmp/out")"
has_to_exit 1 compare --disk a --control "a=${control[b]}"
has_to_exit 1 compare --disk none
has_to_exit 2 compare --quick
has_to_exit 2 nbdmirror backup-verify "$repo" --control a=b
