#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a worker which outlives the server of its disk can do no harm to the next server's
# job: while it lives (here stopped), a new worker is refused and names it; once it is dead, what it
# had in flight may still be applied late, and does not survive.  The file CONTROL.worker, by which
# this is known, is gone after every end in order, stays while there is doubt, and where it cannot
# be had the mirror goes on with a warning.
. "$(dirname "$0")/lib.sh"
proves_nothing_under address
proves_nothing_under thread

size=$(bytes 16M)
lock=$tmp/src.control.worker
head -c "$size" /dev/urandom >"$tmp/disk"

server_killed () { kill -KILL "${pid[src]}"; wait "${pid[src]}" 2>/dev/null ||
  :; unset "pid[src]"; }
worker_killed () { kill -KILL "${pid[mirror]}"; wait "${pid[mirror]}" 2>/dev/null ||
  :; unset "pid[mirror]"; }
restart_server () {
  wait_for 5 test ! -e "${socket[src]}" -a ! -e "${control[src]}"
  start_server src "$tmp/disk"
}
# rewrite BYTE: the guest writes its whole disk.
rewrite () {
  "$python" - "${uri[src]}" "$1" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for offset in range(0, h.get_size(), 1 << 20):
    h.pwrite(bytes([int(sys.argv[2])]) * (1 << 20), offset)
h.flush()
h.shutdown()
PY
}
status_is () { [ "$(status_of "${control[src]}" "$1")" = "$2" ]; }
status_has_sent () { [ "$(status_of "${control[src]}" sent-bytes)" -gt 0 ]; }
start_worker () {
  : >"$tmp/mirror.log"
  spawn mirror nbdmirror mirror "${control[src]}" "$@"
}
no_lock () { [ ! -e "$lock" ] || fail "$1: ${lock##*/} was left behind: $(cat "$lock")"; }

# ---- an old worker that still lives
start_server src "$tmp/disk"
start_dest dst file "$size"
start_worker "${uri[dst]}" --bandwidth 4M
wait_for 20 status_has_sent
[ -s "$lock" ] || fail "no ${lock##*/} beside the control socket"
sigstop "${pid[mirror]}"
server_killed
restart_server
rewrite 2
has_to_exit 7 nbdmirror mirror "${control[src]}" "${uri[dst]}" --on-ready complete
grep -q "process ${pid[mirror]}, still lives" "$tmp/err" ||
  fail "the old worker is not named: $(cat "$tmp/err")"
[ "$(status_of "${control[src]}" state)" = idle ] || fail "a refused worker left a job behind"

# It goes on: it has lost its server, writes what it has begun, and leaves in order.
kill -CONT "${pid[mirror]}"
wait_exit mirror 10
no_lock "the old worker left in order"
nbdmirror mirror "${control[src]}" "${uri[dst]}" --on-ready complete >"$tmp/out" 2>&1 ||
  fail "$(cat "$tmp/out")"
! grep -q 'did not end in order' "$tmp/out" || fail "a worker that left in order is held against us"
equal "$tmp/disk" "${uri[dst]}"
no_lock completed
stop src
rm "$tmp"/src.control.fence

# ---- the late write of one that is dead: applied 4 s after its connection was closed, when a job
# without quarantine would long have handed over
start_server src "$tmp/disk"
start_fake late --size "$size" --fault write:3=late:4 --log "$tmp/late.jsonl"
start_worker "${uri[late]}" --bandwidth 4M
wait_for 20 grep -q '"fault": "late"' "$tmp/late.jsonl"
worker_killed
server_killed
[ -s "$lock" ] || fail "a killed worker's ${lock##*/} is gone"
restart_server
rewrite 3

# A worker that leaves while there is doubt leaves the file to the next.
start_worker "${uri[late]}" --quarantine-grace 20s
wait_for 20 grep -q 'did not end in order' "$tmp/mirror.log"
wait_for 20 status_is state copying
[ "$(status_of "${control[src]}" quarantine-bytes)" = "$size" ] ||
  fail "not all of the disk is in quarantine"
stop mirror INT
[ "$status" = 6 ] || fail "cancel: exit status $status"
[ -s "$lock" ] || fail "the file is gone, and nothing was copied since"

server_killed
restart_server
nbdmirror mirror "${control[src]}" "${uri[late]}" --quarantine-grace 5s --on-ready complete \
  >"$tmp/out" 2>&1 ||
  fail "$(cat "$tmp/out")"
grep -q 'did not end in order' "$tmp/out" || fail "the file of two servers ago was not heeded"
grep -q '"event": "applied-late"' "$tmp/late.jsonl" ||
  fail "the late write has not come yet: nothing is proved"
equal "$tmp/disk" "${uri[late]}"
no_lock "completed after the late write"
stop src
rm "$tmp"/src.control.fence

# ---- one server, one worker killed: its filter knows what was in flight, and not all has to be
# read back
start_server src "$tmp/disk"
start_worker "${uri[dst]}" --bandwidth 4M
wait_for 20 status_has_sent
worker_killed
[ -s "$lock" ] || fail "a killed worker's ${lock##*/} is gone"
start_worker "${uri[dst]}" --resume
wait_state "${control[src]}" ready 20
! grep -q 'did not end in order' "$tmp/mirror.log" ||
  fail "the filter that knows all is not believed"
stop mirror
no_lock detached

# ---- the destination is mute when a worker leaves: what it has sent may still be on its way
rm -f "$tmp/dst.img"; stop dst; rm -f "${socket[dst]}"; start_dest dst file "$size"
nbdmirror cancel "${control[src]}"
start_worker "${uri[dst]}" --bandwidth 4M
wait_for 20 status_is state copying
wait_for 20 status_has_sent
sigstop "${pid[dst]}"
sleep 0.5 # a request is sent every 62 ms
stop mirror TERM
[ -s "$lock" ] || fail "the file is gone, and requests had no answer"
kill -CONT "${pid[dst]}"
start_worker "${uri[dst]}" --resume
wait_state "${control[src]}" ready 20
stop mirror
no_lock "detached again"

# ---- the file cannot be had
mkdir "$lock"
nbdmirror mirror "${control[src]}" "${uri[dst]}" --resume --on-ready complete >"$tmp/out" 2>&1 ||
  fail "$(cat "$tmp/out")"
grep -q "warning: $lock: cannot open" "$tmp/out" || fail "no warning about $lock: $(cat "$tmp/out")"
[ -d "$lock" ] || fail "what stood in the place of the file was removed"
equal "$tmp/disk" "${uri[dst]}"
