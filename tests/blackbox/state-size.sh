#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a disk of 0 bytes has checkpoints and jobs with a state file, also after a crash and
# after a restart, and that a disk whose size has changed is told apart from the one of its state
# file, with the way out.
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

# Another size.
random_disk "$tmp/disk" 4M
start_stateful src "$tmp/disk" "$tmp/src.state"
nbdmirror checkpoint add "${control[src]}" one
stop src
truncate -s 6M "$tmp/disk"
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
