#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a disk that was handed over to `nbdmirror receive --control --state` comes back with
# what was changed since, and that needs no trust: A to B, back to A, and once more to B, with kills
# of B's server and of the host's memory of it in between.  On its way back the guest is kept out of
# the old disk until the hand-over.  What makes the old disk another one, a rollback, a program that
# writes to it, makes it a whole copy.  A disk that was handed on stays fenced when its server is
# started again.  Each time the disks are compared.
. "$(dirname "$0")/lib.sh"
. "$srcdir/tests/blackbox/return-lib.sh"
proves_nothing_under address
proves_nothing_under thread

size=16M
at_a=$tmp/a.img at_b=$tmp/b.img
random_disk "$at_a" $size
"$python" -c 'import os, sys; os.setxattr(sys.argv[1], "user.test", b"x")' "$at_a" ||
  skip "no extended attributes in $tmp"

sent () { echo $(($(field sent-bytes <"$tmp/report") + $(field zero-bytes <"$tmp/report"))); }
# sent_blocks NUMBER: the last move sent so many blocks at most.
sent_blocks () {
  [ "$(sent)" -le $(($1 * 4096)) ] || fail "$(sent) bytes were sent, and $1 blocks are enough"
}

has_attribute () {
  "$python" -c 'import os, sys
sys.exit("user.nbdmirror." + sys.argv[2] not in os.listxattr(sys.argv[1]))' "$@"
}

# There.  What is told too early is refused.
start_stateful a "$at_a" "$tmp/a.state"
receive b "$at_b" --size $size
[ "$(field control <"$tmp/b.json")" = "${control[b]}" ] || fail "the control is not told"
has_to_exit 1 nbdmirror mirror "${control[b]}" "$tmp/none" --on-ready complete
grep -q "being received" "$tmp/err" || fail "a disk without a guest was mirrored: $(cat "$tmp/err")"
has_to_exit 1 nbdmirror checkpoint add "${control[b]}" early
grep -q "being received" "$tmp/err" || fail "a checkpoint without a guest: $(cat "$tmp/err")"
moves a b
compare "$at_a" "$at_b" || fail "the disks differ after the first move"
wait_for 20 stands a
wait_for 20 has_checkpoint b
first=$(nbdmirror checkpoint list "${control[b]}" --json | field uuid)
[ "$(status_of "${control[a]}" stands-at)" = "$first" ] || fail "the two know different checkpoints"
write_blocks "${guest_uri[b]}" 1 64 "$(bytes 4M)"
stop a

# B's server is killed, and its host as well: the state file knows what was changed.
kill_server b
"$python" "$srcdir/tests/blackbox/other-boot.py" "$tmp/b.state"
receive b "$at_b" --resume
has_checkpoint b || fail "the checkpoint did not survive"
write_blocks "${guest_uri[b]}" 2 64 "$(bytes 4M)"

# Back.  Until then no guest may write to the old disk, and that does not seal it either.
has_to_exit 7 nbdmirror receive "$at_a" --overwrite --size $size --socket "$tmp/none.sock" \
  --control "${control[a]}"
grep -q "handed over" "$tmp/err" || fail "refused for another reason: $(cat "$tmp/err")"
receive a "$at_a" --resume
has_to_exit 1 write_blocks "${guest_uri[a]}" 3 1
grep -qi "not permitted" "$tmp/err" || fail "the old disk took a guest's write"
start_guest guest "${guest_uri[b]}" --rate 10 --seconds 60 --from "$(bytes 1M)" --to "$(bytes 2M)"
moves b a --sync incremental
grep -q "stands at checkpoint 'received'" "$tmp/moves.log" || fail "no reason is told"
wait_exit guest 20
[ "$status" = 0 ] || fail "the guest saw an error"
compare "$at_b" "$at_a" || fail "the disks differ after the way back"
# Extents of 4 MiB count as a whole after the power failed.
[ "$(sent)" -lt $((8 << 20)) ] || fail "$(sent) bytes were sent back"
[ ! -e "${control[a]}.fence" ] || fail "the old fence is left"
[ -e "${control[b]}.fence" ] || fail "there is no fence at B"
write_blocks "${guest_uri[a]}" 4 32
wait_for 20 stands b
wait_for 20 has_checkpoint a
stop b

# Once more, with servers that live: only what was changed.
receive b "$at_b" --resume
moves a b --sync auto
grep -q "incremental" "$tmp/moves.log" || fail "auto was not incremental: $(cat "$tmp/moves.log")"
sent_blocks 40
compare "$at_a" "$at_b" || fail "the disks differ after the third move"
wait_for 20 stands a
wait_for 20 has_checkpoint b
write_blocks "${guest_uri[b]}" 5 32

# A program writes to the old disk while nobody looks.
stop a
printf x | dd of="$at_a" bs=1 seek=3000000 conv=notrunc status=none
receive a "$at_a" --resume
has_to_exit 7 nbdmirror mirror "${control[b]}" "${uri[a]}" --sync incremental
grep -q "stands at no checkpoint" "$tmp/err" || fail "refused for another reason: $(cat "$tmp/err")"
moves b a --sync auto
grep -q "full: the destination stands at no checkpoint" "$tmp/moves.log" ||
  fail "no reason is told: $(cat "$tmp/moves.log")"
compare "$at_b" "$at_a" || fail "the disks differ after a whole copy"
wait_for 20 stands b

# A rollback, by a server that did not see the commit: the disk at B is its guest's again.
kill_server b
start_stateful b "$at_b" "$tmp/b.state"
roll_back "${control[b]}"
has_attribute "$at_b" checkpoint && fail "a disk that was taken back stands at a checkpoint"
"$python" -c 'import os, sys
sys.exit(os.getxattr(sys.argv[1], "user.nbdmirror.sealed") != b"0")' "$at_b" ||
  fail "the file of a disk that was taken back claims a seal that is durable"
write_blocks "${guest_uri[b]}" 6 16
stop a
stop b
receive b "$at_b" --resume
grep -q "sealed" "$tmp/b.log" || fail "a disk that was taken back is not its guest's"

# A disk that was handed on before its guest wrote: its seal is removed at once, though its file is
# an image, and a server that is started again refuses writes.
receive c "$tmp/c.img" --size $size --format qcow2
moves b c
wait_for 20 has_checkpoint c
start_dest plain file $size
has_attribute "$tmp/c.img" sealed || fail "c was not sealed"
moves c plain
is_unsealed () { ! has_attribute "$tmp/c.img" sealed; }
wait_for 20 is_unsealed
old=$(child_of c nbdkit)
kill -KILL "$old"
restarted () {
  local now
  now=$(child_of c nbdkit)
  [ -n "$now" ] && [ "$now" != "$old" ] && listening "${socket[c]}"
}
wait_for 20 restarted
has_to_exit 1 write_blocks "${guest_uri[c]}" 7 1
grep -qi "not permitted" "$tmp/err" || fail "a disk that was handed on took a write"
