#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that the way back of a disk is never guessed: where either side, or both, is killed or
# loses its power between the commit of a hand-over and what it keeps of the checkpoint there,
# --sync incremental is refused, says why, and writes nothing.  --sync auto copies everything.  What
# the two sides kept of earlier moves of the same disk is not taken for the new checkpoint's.
. "$(dirname "$0")/lib.sh"
. "$srcdir/tests/blackbox/return-lib.sh"
proves_nothing_under address
proves_nothing_under thread

size=8M
at_a=$tmp/a.img at_b=$tmp/b.img
random_disk "$at_a" $size
"$python" -c 'import os, sys; os.setxattr(sys.argv[1], "user.test", b"x")' "$at_a" ||
  skip "no extended attributes in $tmp"

# Does A's file say where the disk stands?
recorded () {
  "$python" -c 'import os, sys; os.getxattr(sys.argv[1], "user.nbdmirror.checkpoint")' "$at_a" \
    2>/dev/null
}
lose_power () { "$python" "$srcdir/tests/blackbox/other-boot.py" "$tmp/$1.state"; }
# there: B is received anew, and A's disk is handed over to it.
there () {
  stop b
  receive b "$at_b" --resume
  moves a b
}
# forgetful_there: the same, and A is killed before its file says anything.  The record is made only
# when the clock has left the last time of the file behind, for which A's server waits a second.
forgetful_there () {
  touch -d '+1 hour' "$at_a"
  there
  kill_server a
  touch "$at_a"
  ! recorded || fail "A was killed too late: this test proves nothing"
  lose_power a
}
# cut_b SEED: B's host loses its power when the guest's writes are on the disk, and the table of
# checkpoints (nbdmirror-state(5)) is not.  The old checkpoint was removed before they began.
cut_b () {
  wait_for 20 has_checkpoint b
  write_blocks "${guest_uri[b]}" "$1" 8
  kill_server b
  dd if=/dev/zero of="$tmp/b.state" bs=4096 seek=20 count=34 conv=notrunc status=none
  lose_power b
  receive b "$at_b" --resume
}
# back CASE REASON: an incremental is refused, and then everything comes back.
back () {
  write_blocks "${guest_uri[b]}" 9 8
  stop a
  receive a "$at_a" --resume
  cp "$at_a" "$tmp/before"
  has_to_exit 7 nbdmirror mirror "${control[b]}" "${uri[a]}" --sync incremental
  grep -q "$2" "$tmp/err" || fail "$1: refused for another reason: $(cat "$tmp/err")"
  cmp "$tmp/before" "$at_a" || fail "$1: a refused destination was written to"
  moves b a --sync auto
  grep -q "full: .*$2" "$tmp/moves.log" || fail "$1: no reason is told: $(cat "$tmp/moves.log")"
  compare "$at_b" "$at_a" || fail "$1: the disks differ"
  write_blocks "${guest_uri[a]}" 10 8
}
unknown="the destination stands at no checkpoint"
missing="the destination stands at checkpoint .*, which this disk does not have"

# Nobody is killed: from now on both sides have something to remember.
start_stateful a "$at_a" "$tmp/a.state"
receive b "$at_b" --size $size
moves a b
wait_for 20 stands a
wait_for 20 has_checkpoint b
stop a
receive a "$at_a" --resume
moves b a --sync incremental
wait_for 20 has_checkpoint a
write_blocks "${guest_uri[a]}" 10 8

forgetful_there
wait_for 20 has_checkpoint b
back "A was killed" "$unknown"

there
wait_for 20 stands a
cut_b 1
back "B was killed" "$missing"

forgetful_there
cut_b 2
back "both were killed" "$unknown"

# commit_unheard: B is killed when the hand-over is committed, and before it hears of it.
commit_unheard () {
  stop b
  receive b "$at_b" --resume
  spawn worker nbdmirror mirror "${control[a]}" "${uri[b]}"
  wait_state "${control[a]}" ready 30
  nbdmirror complete "${control[a]}" --prepare-only --rollback-token t >"$tmp/complete.log" 2>&1
  sigstop "$(child_of b nbdkit)"
  spawn commit nbdmirror complete "${control[a]}" --commit --token t
  wait_state "${control[a]}" completed 20
  kill_server b
  wait_exit commit 20
  [ "$status" = 3 ] || fail "the commit ended with $status, though nobody sealed the destination"
  wait_exit worker 20
  wait_for 20 stands a
}
declare -A time
commit_unheard
receive b "$at_b" --resume
has_to_exit 1 write_blocks "${guest_uri[b]}" 3 1
has_to_exit 0 nbdmirror complete "${control[a]}" --commit --token t
back "B was killed before its seal" "$missing"

# Both are killed then, and each disk is received: neither lets its guest write, and both say so.
# The one that was handed over later, of which its record tells, has the older data.
commit_unheard
kill_server a
lose_power a
receive a "$at_a" --resume
receive b "$at_b" --resume
for name in a b; do
  grep -q "handed over: its guest's writes are refused.*if both hosts" "$tmp/$name.log" ||
    fail "$name does not say why: $(cat "$tmp/$name.log")"
  has_to_exit 1 write_blocks "${guest_uri[$name]}" 3 1
  time[$name]=$(field time <"${control[$name]}.fence")
done
[ "${time[a]}" -ge "${time[b]}" ] || fail "B was handed over later: ${time[a]}, ${time[b]}"
has_to_exit 0 "$NBDMIRROR" receive --seal "${uri[b]}"
back "both were killed before B's seal" "$missing\|$unknown"
