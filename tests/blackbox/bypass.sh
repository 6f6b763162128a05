#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a server knows, also after it was killed or ended and started again, that somebody
# writes to its disk without passing it: no mirror job and no checkpoint begins, and those that
# there were are inconsistent.  In another boot the writer is gone, but what it wrote was not
# tracked.  A damaged record counts.
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread

random_disk "$tmp/disk" 4M
start_dest dst file 4M
record=$tmp/src.control.bypass

# restart SIGNAL
restart () {
  kill -"$1" "${pid[src]}"
  wait "${pid[src]}" 2>/dev/null || :
  rm -f "${control[src]}" "${socket[src]}"
  start_stateful src "$tmp/disk" "$tmp/state"
}
# bypass true|false
bypass () {
  PYTHONPATH=$srcdir/tests/blackbox "$python" -c 'import sys, filter_client
filter_client.Client(sys.argv[1]).call("mirror-bypass", on=sys.argv[2] == "true")' \
    "${control[src]}" "$1"
}
# is_bypassed CASE: nothing may begin.
is_bypassed () {
  [ "$(status_of "${control[src]}" bypassed)" = true ] || fail "$1: it is forgotten"
  has_to_exit 1 nbdmirror mirror "${control[src]}" "${uri[dst]}" --on-ready complete
  grep -q "without passing this server.*remove $record" "$tmp/err" || fail "$1: no reason is given"
  has_to_exit 1 nbdmirror checkpoint add "${control[src]}" two
  grep -q 'without passing this server' "$tmp/err" || fail "$1: no reason for the checkpoint"
}
# inconsistent CASE NAME
inconsistent () {
  nbdmirror checkpoint list "${control[src]}" >"$tmp/list"
  grep -q "$2.*inconsistent" "$tmp/list" || fail "$1: checkpoint $2 is to be believed"
}

start_stateful src "$tmp/disk" "$tmp/state"
[ "$record" = "${control[src]}.bypass" ] || fail "the control socket has another name"
nbdmirror checkpoint add "${control[src]}" one

# Not between the two steps of a checkpoint: it would not know of what goes around.
PYTHONPATH=$srcdir/tests/blackbox "$python" -c 'import sys, filter_client as f
adding, other, word = f.Client(sys.argv[1]), f.Client(sys.argv[1]), f.Word()
adding.call("mirror-checkpoint-prepare", fd=word.fd, name="late")
try:
    other.call("mirror-bypass", on=True)
    sys.exit("not refused")
except f.Refused as e:
    assert "a checkpoint is being added" in str(e), e
adding.close()' "${control[src]}" || fail "a checkpoint was being added"
late_is_gone () { ! nbdmirror checkpoint list "${control[src]}" | grep -q late; }
wait_for 20 late_is_gone
wait_for 20 bypass true
is_bypassed "at once"
restart KILL
is_bypassed "after a kill"
inconsistent "after a kill" one
restart TERM
is_bypassed "after an end"
echo damaged >"$record"
restart TERM
is_bypassed "with a damaged record"

bypass false
[ ! -e "$record" ] || fail "the record is still there"
restart KILL
[ "$(status_of "${control[src]}" bypassed)" = false ] || fail "it does not end"

# Another boot: a checkpoint that was made before the record appeared.
nbdmirror checkpoint add "${control[src]}" three
nbdmirror checkpoint list "${control[src]}" >"$tmp/list"
! grep -q 'three.*inconsistent' "$tmp/list" || fail "a new checkpoint is inconsistent"
echo 'nbdmirror bypass, boot 11111111-2222-3333-4444-555555555555' >"$record"
restart TERM
[ "$(status_of "${control[src]}" bypassed)" = false ] || fail "another boot's writer is believed"
inconsistent "after another boot" three
[ ! -e "$record" ] || fail "another boot's record is still there"
nbdmirror mirror "${control[src]}" "${uri[dst]}" --on-ready complete
equal "$tmp/disk" "${uri[dst]}"
