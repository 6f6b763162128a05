#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a worker which is stopped (SIGSTOP) while it holds the gate holds the guest no longer
# than the lease, though it still lives and keeps its connection; that another worker is refused
# meanwhile (exit 7); and that it can do no harm when it goes on: its generation is void, it copies
# on, and hands over later.  While prepared likewise.
. "$(dirname "$0")/lib.sh"
measures_times
. "$srcdir/tests/blackbox/holding.sh"

# second_refused WHAT: there can be one worker, also where it is stopped.
second_refused () {
  local start
  for start in "" --resume --restart; do
    # shellcheck disable=SC2086
    has_to_exit 7 timeout 30 "$NBDMIRROR" mirror "${control[src]}" "${uri[dst]}" $start
    grep -qi 'worker' "$tmp/err" || fail "$1: mirror $start does not say why: $(cat "$tmp/err")"
  done
}
after_lease () { awk -v l="$1" -v p="$prompt" 'BEGIN { print l - 0.5 + p }'; }

begin_holding start_dest dst file "$holding_size"

start_holding 4s 4
sigstop "${pid[mirror]}"
went_on "worker stopped while holding" "$held_at" "$(after_lease 4)"
wait_exit complete 20
[ "$status" = 1 ] || fail "complete ended with $status instead of 1"
! grep -q 'rollback token' "$tmp/complete.log" || fail "complete printed a rollback token"
second_refused "stopped while holding"
before=$(wc -l <"$tmp/pulse")
sleep 0.5
[ "$(wc -l <"$tmp/pulse")" -gt "$before" ] ||
  fail "the guest does not go on beside a stopped worker"
kill -CONT "${pid[mirror]}"
wait_for 20 status_is_not state holding
nbdmirror set "${control[src]}" bandwidth=none >/dev/null
wait_state "${control[src]}" ready 30
guests_are_well "continued"

start_prepared 2000
sigstop "${pid[mirror]}"
went_on "worker stopped while prepared" "$held_at" "$(after_lease 2)"
wait_exit prepare 10
grep -q '^word 2' "$tmp/prepare.log" || fail "the word does not say abort"
grep -q '^not committed' "$tmp/prepare.log" || fail "committed after the lease"
second_refused "stopped while prepared"
kill -CONT "${pid[mirror]}"
wait_for 20 status_is_not state prepared
wait_state "${control[src]}" ready 30
guests_are_well "continued after prepared"

# A stopped worker that is killed makes room.
sigstop "${pid[mirror]}"
second_refused "stopped while ready"
kill -KILL "${pid[mirror]}"
wait "${pid[mirror]}" 2>/dev/null || :
start_worker --resume

complete_and_compare
