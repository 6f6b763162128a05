#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that nobody who dies in the middle of a hand-off takes the guest along: worker, coordinator
# and destination are killed -9 while the gate is held (copying the last blocks, or prepared), and
# the guest goes on within a second, though the lease would last much longer; a destination that
# hangs holds it no longer than the lease.  After each the job goes on, and in the end all is equal.
. "$(dirname "$0")/lib.sh"
measures_times
proves_nothing_under address
. "$srcdir/tests/blackbox/holding.sh"

kill_now () {
  killed_at=$EPOCHREALTIME
  kill -KILL "${pid[$1]}"
  wait "${pid[$1]}" 2>/dev/null || :
  unset "pid[$1]"
}
# The command `complete` says that nothing was handed over.
complete_failed () {
  wait_exit complete 15
  [ "$status" = 1 ] || fail "$1: complete ended with $status instead of 1"
  ! grep -q 'rollback token' "$tmp/complete.log" || fail "$1: complete printed a rollback token"
  note "$1: $(tail -n 1 "$tmp/complete.log")"
}

begin_holding start_dest dst file "$holding_size"

start_holding 30s
kill_now mirror
went_on "worker killed while holding" "$killed_at" "$prompt"
complete_failed "worker killed while holding"
status_is state detached || fail "the state is not detached"
start_worker --resume

start_prepared 30000
kill_now mirror
went_on "worker killed while prepared" "$killed_at" "$prompt"
wait_exit prepare 10
grep -q '^word 2' "$tmp/prepare.log" || fail "the word does not say abort"
grep -q '^not committed' "$tmp/prepare.log" || fail "committed without a worker"
start_worker --resume

start_holding 30s
kill_now complete
went_on "coordinator killed while holding" "$killed_at" "$prompt"
wait_for 10 status_is_not state holding
nbdmirror set "${control[src]}" bandwidth=none >/dev/null
wait_state "${control[src]}" ready 20

start_prepared 30000
kill_now prepare
went_on "coordinator killed while prepared" "$killed_at" "$prompt"
wait_state "${control[src]}" ready 20
running mirror || fail "the worker ended with its coordinator"

start_holding 30s
kill_now dst
went_on "destination killed while holding" "$killed_at" "$prompt"
complete_failed "destination killed while holding"
wait_state "${control[src]}" degraded 5
start_dest dst file "$holding_size"
nbdmirror set "${control[src]}" bandwidth=none >/dev/null
wait_state "${control[src]}" ready 30

# Stopped, not dead: the worker sees that the lease won't do; its time limit for the destination is
# longer.
start_holding 4s 4
sigstop "${pid[dst]}"
went_on "destination stopped while holding" "$held_at" \
  "$(awk -v p="$prompt" 'BEGIN { print 3.5 + p }')"
complete_failed "destination stopped while holding"
grep -q 'the rest would take' "$tmp/complete.log" || fail "held to the end of the lease for nothing"
kill -CONT "${pid[dst]}"

# What is left would not fit in the lease: nobody is held for it.
leave_much
generation=$(status_of "${control[src]}" generation)
has_to_exit 1 nbdmirror complete "${control[src]}" --lease 1s
grep -q 'longer than the 1000 ms' "$tmp/err" || fail "refused for another reason: $(cat "$tmp/err")"
[ "$(status_of "${control[src]}" generation)" = "$generation" ] ||
  fail "the guest was held for a hold that cannot do"

complete_and_compare
