#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a synchronous guest is never worse off than by one bounded delay: its destination is
# stopped, the worker is stopped, the destination is killed and started again, the worker is killed
# and resumed. Each time the guest goes on, no write waits much longer than max-write-delay, writes
# do not queue up for such a delay each, the job is not synchronised meanwhile and is so again
# afterwards; and in the end all is equal.
. "$(dirname "$0")/lib.sh"
measures_times

size=$(bytes 32M)
shadowed_disk "$size"
start_server src "$tmp/disk"
start_dest dst file "$size"

# A busy machine, or one with a sanitizer, may run nobody for a while.
slack=0.2
[ -z "$sanitizers" ] && [ "${VALGRIND:-0}" = 0 ] || slack=1.0
threads=4

start_worker () {
  : >"$tmp/mirror.log"
  spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --quarantine-grace 200ms \
    --max-downtime 5s \
    --max-write-delay 50ms "$@"
  wait_state "${control[src]}" ready 30
  nbdmirror set "${control[src]}" synchronous=on >/dev/null
  wait_for 30 synchronised true
}
synchronised () { [ "$(status_of "${control[src]}" synchronised)" = "$1" ]; }
number () { local n; n=$(status_of "${control[src]}" "$1"); echo "${n%%.*}"; }

# meanwhile WHAT: something is wrong now; how does the guest fare?
meanwhile () {
  local delayed missed
  wait_for 10 synchronised false
  sleep 0.3                     # those that wait at the beginning have had their delay
  delayed=$(number delayed-writes) missed=$(number missed-writes)
  wait_for 20 missed_more "$missed" 100
  running guest || fail "$1: the guest ended: $(cat "$tmp/guest.json")"
  delayed=$(($(number delayed-writes) - delayed))
  note "$1: 100 writes went on, $delayed of them after waiting"
  [ $delayed -le $((threads * 3)) ] || fail "$1: $delayed of 100 writes waited though nothing moved"
}
missed_more () { [ $(($(number missed-writes) - $1)) -ge "$2" ]; }

# well WHAT: it is over; what has it cost?
well () {
  wait_for 30 synchronised true
  [ "$(status_of "${control[src]}" gate)" = synchronous ] || fail "$1: the gate is not synchronous"
  longest=$(status_of "${control[src]}" longest-write-delay-ms)
  note "$1: synchronised again; the longest delay so far was $longest ms"
  awk -v l="$longest" -v s="$slack" 'BEGIN { exit !(l <= 50 + 10 + 1000 * s) }' ||
    fail "$1: a write was delayed by $longest ms"
}

start_worker
start_guest guest "${uri[src]}" --shadow "$tmp/shadow" --connections $threads --rate 300 \
  --seconds 600
many_waited () { [ "$(number delayed-writes)" -ge 100 ]; }
wait_for 20 many_waited

sigstop "${pid[dst]}"
meanwhile "destination stopped"
kill -CONT "${pid[dst]}"
well "destination stopped"

sigstop "${pid[mirror]}"
meanwhile "worker stopped"
kill -CONT "${pid[mirror]}"
well "worker stopped"

# Slow is not stopped: under a limit that is lower than what the guest writes its writes go on
# waiting, each in vain.
nbdmirror set "${control[src]}" bandwidth=1M >/dev/null
wait_for 10 synchronised false
sleep 0.5
delayed=$(number delayed-writes)
sleep 3
delayed=$(($(number delayed-writes) - delayed))
note "slow destination: $delayed writes waited in 3 s"
[ $delayed -ge 60 ] || fail "the guest does not wait for a destination that is slow"
nbdmirror set "${control[src]}" bandwidth=none >/dev/null
well "slow destination"

# Killed: nobody waits for it at all.
stop dst KILL
wait_state "${control[src]}" degraded 20
wait_for 10 synchronised false
[ "$(status_of "${control[src]}" gate)" = open ] ||
  fail "the gate is not open without a destination"
delayed=$(number delayed-writes)
guest_changed guest 1 || fail "the guest does nothing"
sleep 0.3
[ "$(number delayed-writes)" = "$delayed" ] || fail "writes wait though the gate is open"
start_dest dst file "$size"
well "destination killed"

stop mirror KILL
wait_state "${control[src]}" detached 10
[ "$(status_of "${control[src]}" gate)" = open ] || fail "the gate is not open without a worker"
start_worker --resume
well "worker killed"

# A stopped destination under the last step of all: the guest's waiting writes do not count as in
# flight (R3).
complete_soon "${control[src]}"
ends_well mirror
ends_well guest
note "the guest: $(cat "$tmp/guest.json")"
equal "$tmp/disk" "${uri[dst]}"
shadow_equal
