#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a disk of 0 bytes has checkpoints and jobs with a state file, also after a crash and
# after a restart.  A disk that was resized begins a new state by itself.  Another disk of another
# size is told apart from the one of the state file, which is left alone.
. "$(dirname "$0")/lib.sh"
proves_nothing_under address
proves_nothing_under thread

# Nothing at all.
: >"$tmp/none"
start_stateful none "$tmp/none" "$tmp/none.state"
nbdmirror checkpoint add "${control[none]}" one
nbdmirror checkpoint add "${control[none]}" two
[ -z "$(nbdmirror dirty-map "${control[none]}" --since one)" ] || fail "nothing was changed"
kill -KILL "${pid[none]}"
wait "${pid[none]}" 2>/dev/null || :
start_stateful none "$tmp/none" "$tmp/none.state"
stop none
start_stateful none "$tmp/none" "$tmp/none.state"
nbdmirror checkpoint list "${control[none]}" >"$tmp/list"
[ "$(grep -c " consistent, 0 B changed since" "$tmp/list")" = 2 ] ||
  fail "the checkpoints: $(cat "$tmp/list")"
nbdmirror checkpoint remove "${control[none]}" one
nbdmirror mirror "${control[none]}" "$tmp/copy" --on-ready complete --report "$tmp/report"
[ -f "$tmp/copy" ] && [ ! -s "$tmp/copy" ] || fail "the copy of nothing is not nothing"

# The same disk, after a clean end and after a crash, with a job left over.
random_disk "$tmp/grows" 4M
if "$python" -c 'import os, sys; os.setxattr(sys.argv[1], "user.x", b"")' "$tmp/grows" \
  2>/dev/null; then
  start_stateful grows "$tmp/grows" "$tmp/grows.state"
  nbdmirror checkpoint add "${control[grows]}" one
  spawn mirror nbdmirror mirror "${control[grows]}" "$tmp/first"
  wait_state "${control[grows]}" ready 20
  kill -KILL "${pid[grows]}" "${pid[mirror]}"
  wait "${pid[grows]}" "${pid[mirror]}" 2>/dev/null || :
  for size in 6M 5M; do
    truncate -s $size "$tmp/grows"
    nbdmirror state "$tmp/grows.state" --disk "$tmp/grows" >"$tmp/state"
    grep -q ' the disk was resized from ' "$tmp/state" ||
      fail "the state of a disk of another size: $(cat "$tmp/state")"
    start_stateful grows "$tmp/grows" "$tmp/grows.state"
    grep -q "was resized from .* tracking begins anew" "$tmp/grows.log" || fail "nothing is told"
    ! nbdmirror checkpoint list "${control[grows]}" | grep one ||
      fail "a checkpoint of a disk of another size"
    has_to_exit 7 nbdmirror mirror "${control[grows]}" "$tmp/first" --resume
    nbdmirror checkpoint add "${control[grows]}" one
    rm -f "$tmp/first"
    nbdmirror mirror "${control[grows]}" "$tmp/first" --on-ready complete
    compare "$tmp/grows" "$tmp/first" || fail "the copy of the disk of $size differs"
    stop grows
    rm "${control[grows]}.fence" "$tmp/grows.log"
  done
  truncate -s 5M "$tmp/grows"
  start_stateful grows "$tmp/grows" "$tmp/grows.state"
  nbdmirror checkpoint list "${control[grows]}" | grep -q one || fail "it was not resized"
  stop grows
  # It has its old size again, but what was cut off is gone.
  start_stateful grows "$tmp/grows" "$tmp/grows.state"
  truncate -s 4M "$tmp/grows"
  stop grows
  truncate -s 5M "$tmp/grows"
  start_stateful grows "$tmp/grows" "$tmp/grows.state"
  nbdmirror checkpoint list "${control[grows]}" | grep -q 'one.*inconsistent' ||
    fail "resized while it was served: $(nbdmirror checkpoint list "${control[grows]}")"
  stop grows
  # untracked SIZE COMMAND...: it is resized while it is served, after COMMAND, before anything is
  # tracked; then a checkpoint is added, and another server starts.
  untracked () {
    rm "$tmp/grows.state"
    start_stateful grows "$tmp/grows" "$tmp/grows.state"
    "${@:2}" >"$tmp/out"
    truncate -s "$1" "$tmp/grows"
    nbdmirror checkpoint add "${control[grows]}" two
    stop grows
    start_stateful grows "$tmp/grows" "$tmp/grows.state"
  }
  untracked 6M true
  nbdmirror checkpoint list "${control[grows]}" | grep -q 'two.* consistent' ||
    fail "it was not resized: $(nbdmirror checkpoint list "${control[grows]}")"
  stop grows
  # A guest has opened it before, and goes on with the size that it saw.
  untracked 5M nbdinfo --size "${uri[grows]}"
  nbdmirror checkpoint add "${control[grows]}" two
  stop grows
  # It was served without the state file, and so is known no more.
  "$python" -c 'import os, sys; os.removexattr(sys.argv[1], "user.nbdmirror.tracked")' "$tmp/grows"
  truncate -s 7M "$tmp/grows"
  before=$(stat -c %s "$tmp/grows.state")
  start_stateful grows "$tmp/grows" "$tmp/grows.state"
  [ "$(stat -c %s "$tmp/grows.state")" = "$before" ] || fail "the state of another disk was emptied"
  stop grows
fi

# Another disk.
random_disk "$tmp/other" 4M
start_stateful src "$tmp/other" "$tmp/src.state"
nbdmirror checkpoint add "${control[src]}" one
stop src
random_disk "$tmp/disk" 6M
start_stateful src "$tmp/disk" "$tmp/src.state"
has_to_exit 1 nbdmirror mirror "${control[src]}" "$tmp/larger" --on-ready complete
grep -q "of another size.*remove the file" "$tmp/err" || fail "a job: $(cat "$tmp/err")"
has_to_exit 1 nbdmirror checkpoint add "${control[src]}" two
grep -q "of another size.*remove the file" "$tmp/err" || fail "a checkpoint: $(cat "$tmp/err")"
stop src
rm "$tmp/src.state"
start_stateful src "$tmp/disk" "$tmp/src.state"
nbdmirror checkpoint add "${control[src]}" two
nbdmirror mirror "${control[src]}" "$tmp/larger" --on-ready complete
compare "$tmp/disk" "$tmp/larger" || fail "the copy of the larger disk differs"
