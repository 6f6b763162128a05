#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a state file which is made shorter under a running server harms no guest: its server
# lives, whichever of its threads touches a page that is gone, and says that the file is
# inconsistent.  A new checkpoint and a new job begin without a restart.
. "$(dirname "$0")/lib.sh"

size=64M state=$tmp/state
options=(-- mirror-state-volatile=yes)

write_to () { qemu-io -f raw -c "write -q -P $2 $1 4k" -c flush "${uri[src]}"; }
need qemu-io
status_is () { [ "$(status_of "${control[src]}" "$1")" = "$2" ]; }
changed () {
  nbdmirror dirty-map "${control[src]}" --since "$1" --json | "$python" -c '
import json, sys
print(sum(r["length"] for r in json.load(sys.stdin) if r["type"]))'
}

random_disk "$tmp/disk" $size
start_dest dst file $size
start_server src "$tmp/disk" --state "$state" "${options[@]}"

# A guest's thread.
nbdmirror checkpoint add "${control[src]}" one
write_to 8M 1
truncate -s 16k "$state"
write_to 9M 2
wait_for 10 status_is state-status inconsistent
wait_for 10 grep -q 'is inconsistent: a page of it is gone' "$tmp/src.log"
write_to 30M 3
nbdmirror checkpoint list "${control[src]}" >"$tmp/list"
grep -q inconsistent "$tmp/list" || fail "the checkpoint is still believed"

nbdmirror checkpoint add "${control[src]}" two
write_to 10M 4
[ "$(changed two)" = 4096 ] || fail "a checkpoint does not begin anew"
spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}"
wait_state "${control[src]}" ready 40
status_is state-status active || fail "a job's state is not kept"

# A thread of the server's own: nobody writes.
truncate -s 16k "$state"
wait_for 10 status_is state-status inconsistent
write_to 11M 5
complete_soon "${control[src]}"
wait_exit mirror 20
equal "$tmp/disk" "${uri[dst]}"
stop src
