#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a job that is ready, paused, or without its destination, a copy without it, and a
# server with a job or with nothing attached, sleep while the guest writes nothing: no thread of the
# server's wakes up by itself more often than once in a second, the worker does so every five
# seconds, and once a second where the user has made the gate synchronous.  That the guest's next
# write wakes the worker at once.  And that a worker at rest gives the memory of its copying back.
. "$(dirname "$0")/lib.sh"
measures_times
[ -z "$runtime" ] || skip "sanitizers have threads of their own"
[ "${VALGRIND:-0}" = 0 ] || skip "valgrind is a program of its own"
look_s=3

# sleeps PID: how often its threads went to sleep so far
sleeps () {
  cat "/proc/$1"/task/*/status | awk '/^voluntary_ctxt_switches/ { n += $2 } END { print n }'
}
# rests [NAME PID MOST]...: at most MOST wake-ups of each in the same $look_s seconds; for late
# arrivals two tries more
rests () {
  local before try i n late
  for try in 1 2 3; do
    before=() late=
    for ((i = 1; i < $#; i += 3)); do before[i]=$(sleeps "${@:i+1:1}"); done
    sleep $look_s
    for ((i = 1; i < $#; i += 3)); do
      n=$(($(sleeps "${@:i+1:1}") - before[i]))
      note "${*:i:1}: $n wake-ups"
      [ $n -le "${*:i+2:1}" ] || late="$late ${*:i:1}"
    done
    [ -n "$late" ] || return 0
  done
  fail "woke up too often in $look_s s, try $try:$late"
}

random_disk "$tmp/disk" 16M
start_server src "$tmp/disk"
rests "server with nothing attached" "${pid[src]}" 2
start_dest dst file 16M
spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" # with its progress in a file
wait_state "${control[src]}" ready 20
worker=$(status_of "${control[src]}" worker-pid)
sleep 3 # the rates of the copy have to be forgotten
rests "ready worker" "$worker" 2 "server" "${pid[src]}" 7

# A write is at the destination well before any timer of a sleeping worker would have ended.
"$python" - "${uri[src]}" "${uri[dst]}" <<'PY' || fail "a sleeping worker did not wake up"
import nbd, sys, time
guest, dest = nbd.NBD(), nbd.NBD()
guest.connect_uri(sys.argv[1])
dest.connect_uri(sys.argv[2])
for n in range(1, 4):
    data = bytes([n]) * 4096
    guest.pwrite(data, 65536)
    end = time.monotonic() + 2
    while dest.pread(4096, 65536) != data:
        if time.monotonic() > end:
            sys.exit("write %d is not at the destination after 2 s" % n)
        time.sleep(0.005)
    time.sleep(0.7)   # it falls asleep again
for h in guest, dest:
    h.shutdown()
PY

nbdmirror pause "${control[src]}"
sleep 1
rests "paused worker" "$worker" 2
nbdmirror resume "${control[src]}"
wait_state "${control[src]}" ready 20
# Where the user has made the gate synchronous, all is caught up.
synchronised () { [ "$(status_of "${control[src]}" synchronised)" = true ]; }
nbdmirror set "${control[src]}" synchronous=on
wait_for 10 synchronised
sleep 1
rests "synchronous worker" "$worker" 8 "server, synchronous" "${pid[src]}" 7

complete_soon "${control[src]}" --lease 10s
ends_well mirror 10
equal "$tmp/disk" "${uri[dst]}"

# A state file: two threads look once in a second whether something is to be written to it, and the
# control thread notes the job's figures.
cp "$tmp/disk" "$tmp/kept"
start_stateful kept "$tmp/kept" "$tmp/state"
nbdmirror checkpoint add "${control[kept]}" one
rests "server with a checkpoint" "${pid[kept]}" 10
start_dest lost file 16M
spawn lonely nbdmirror mirror "${control[kept]}" "${uri[lost]}"
wait_state "${control[kept]}" ready 20
sleep 3
rests "server with a state file and a job" "${pid[kept]}" 20

# Not to be synchronous, since a block cannot be read.
start_fake storage --file "$tmp/disk" --fault "read@65536-69631=error:EIO"
start_nbdkit bad nbd "socket=${socket[storage]}"
start_dest good file 16M
spawn bad_mirror nbdmirror mirror "${control[bad]}" "${uri[good]}"
wait_state "${control[bad]}" degraded 10
nbdmirror set "${control[bad]}" synchronous=on
only_it_is_left () { [ "$(status_of "${control[bad]}" dirty-bytes)" = 4096 ]; }
wait_for 10 only_it_is_left

# The destination is gone: the pauses between two attempts grow up to 30 s.  The same of a copy that
# was near its end, and slow.
start_dest gone file 16M
spawn copy nbdmirror copy "$tmp/disk" "${uri[gone]}" --bandwidth 1M --give-up-after 1min
has_begun () { [ "$(stat -c %b "$tmp/gone.img")" -gt 0 ]; }
wait_for 10 has_begun
stop gone KILL
wait_for 10 grep -q 'trying again' "$tmp/copy.log"
stop lost KILL
wait_state "${control[kept]}" degraded 10
sleep 6
rests "degraded worker" "$(status_of "${control[kept]}" worker-pid)" 8 \
  "server, degraded" "${pid[kept]}" 20 \
  "copy, degraded" "${pid[copy]}" 10 \
  "worker with a bad block, to be synchronous" "$(status_of "${control[bad]}" worker-pid)" 90 \
  "server with a bad block, to be synchronous" "${pid[bad]}" 90
running copy || fail "the copy gave up: $(cat "$tmp/copy.log")"
stop copy KILL
stop bad_mirror KILL
stop bad
stop lonely KILL
stop kept

# What a copy over a long line has in flight, tens of MiB, is not kept by a worker that is ready.
relay=$builddir/bench/relay
[ -x "$relay" ] || exit 0
random_disk "$tmp/large" 96M
start_server large "$tmp/large"
start_dest far memory 96M -t 64
# shellcheck disable=SC2016
spawn relay sh -c 'exec "$@" >"$0"' "$tmp/relay.ready" "$relay" --listen "$tmp/far.line" \
  --connect "${socket[far]}" --delay 25
wait_for 10 grep -q ready "$tmp/relay.ready"
spawn mirror nbdmirror mirror "${control[large]}" "nbd+unix:///?socket=$tmp/far.line"
wait_state "${control[large]}" ready 20
worker=$(status_of "${control[large]}" worker-pid)
is_small () {
  local kib
  kib=$(awk '/^Private_/ { n += $2 } END { print n }' "/proc/$worker/smaps_rollup")
  note "worker over a long line: $kib KiB of memory"
  [ "$kib" -le $((12 << 10)) ]
}
wait_for 10 is_small
stop mirror

# Paused before it was ready, where a flush takes long: no flush tells it anything.
spawn mirror nbdmirror mirror "${control[large]}" "nbd+unix:///?socket=$tmp/far.line" --restart \
  --bandwidth 8M
wait_state "${control[large]}" copying 10
worker=$(status_of "${control[large]}" worker-pid)
sleep 3
nbdmirror pause "${control[large]}"
sleep 2
rests "worker paused before it was ready" "$worker" 2
wait_for 5 is_small
