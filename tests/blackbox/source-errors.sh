#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves what becomes of a source that cannot be read.  Storage that fails for a while: the job
# waits, is never ready meanwhile, and goes on.  One bad block: everything else is copied, the block
# is named in status, event, message and report, the job is never ready, and it ends when
# --give-up-after says so.
. "$(dirname "$0")/lib.sh"
measures_times

size=$(bytes 8M) bad=1052672
random_disk "$tmp/disk" "$size"
head -c "$size" /dev/urandom >"$tmp/disk"

# events NAME CONTROL: every event of the control socket goes to $tmp/NAME.log.
events () {
  spawn "$1" "$python" -u -c '
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b"{\"execute\": \"qmp_capabilities\"}\n")
for line in s.makefile():
    print(line, end="")' "$2"
  wait_for 10 grep -q return "$tmp/$1.log"
}

# ---- storage that is away for a while ----

start_nbdkit src --filter=error file "$tmp/disk" error-pread=EIO error-pread-rate=100% \
  "error-pread-file=$tmp/broken"
start_dest dst file "$size"
events events "${control[src]}"
start_fio guest "${uri[src]}" --rate_iops=50
spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --bandwidth 4M --give-up-after 30s \
  --report "$tmp/report"
wait_state "${control[src]}" copying 10
sleep 0.5
touch "$tmp/broken"
wait_state "${control[src]}" degraded 10
[ "$(status_of "${control[src]}" unreadable-offset)" != null ] ||
  fail "the status does not name the offset"
[[ $(status_of "${control[src]}" error) == *"cannot read"*"Input/output error"* ]] ||
  fail "the status has no error"
grep -q '"BLOCK_JOB_ERROR".*"operation": "read"' "$tmp/events.log" || fail "no event"
# A second is enough for several attempts.
for ((i = 0; i < 10; i++)); do
  [ "$(status_of "${control[src]}" state)" = degraded ] || fail "it is not degraded any more"
  sleep 0.1
done
has_to_exit 1 nbdmirror complete "${control[src]}"
rm "$tmp/broken"
nbdmirror set "${control[src]}" bandwidth=0
wait_state "${control[src]}" ready 30
[ "$(status_of "${control[src]}" unreadable-bytes)" = 0 ] ||
  fail "the status still has unreadable bytes"
grep -q 'everything can be read again' "$tmp/mirror.log" ||
  fail "the worker does not say that it goes on"
running guest || fail "the guest saw an error"
stop guest INT
complete_soon "${control[src]}"
wait_exit mirror 20
[ "$status" = 0 ] || fail "mirror ended with $status"
equal "$tmp/disk" "${uri[dst]}"
stop events
stop src
stop dst

# ---- one bad block ----

cp "$tmp/disk" "$tmp/image"
start_fake storage --file "$tmp/image" --fault "read@$bad-$((bad + 4095))=error:EIO"
start_nbdkit two nbd "socket=${socket[storage]}"
start_dest far file "$size"
: >"$tmp/mirror.log"
spawn mirror nbdmirror mirror "${control[two]}" "${uri[far]}" --give-up-after 3s \
  --report "$tmp/report"
wait_state "${control[two]}" degraded 10
begun=${EPOCHREALTIME/./}
only_it_is_left () {
  [ "$(status_of "${control[two]}" dirty-bytes)" = 4096 ] &&
    [ "$(status_of "${control[two]}" unreadable-offset)" = $bad ] &&
    [ "$(status_of "${control[two]}" unreadable-bytes)" = 4096 ]
}
wait_for 2 only_it_is_left
wait_exit mirror 10
took=$(((${EPOCHREALTIME/./} - begun) / 1000))
[ "$status" = 1 ] || fail "mirror ended with $status instead of 1"
within $took 3300 "given up after $took ms instead of 3000"
grep -q "given up after 3.0 s: .*cannot read 4096 bytes at offset $bad: Input/output error" \
  "$tmp/mirror.log" ||
  fail "the message does not name the block"
! grep -q 'ready' <(grep -v 'not ready before' "$tmp/mirror.log") ||
  fail "it was ready with a block that is not copied"
"$python" - "$tmp/report" $bad <<'PY' || fail "the report does not name the block"
import json, sys
assert json.load(open(sys.argv[1]))["unreadable"] == [{"offset": int(sys.argv[2]), "length": 4096}]
PY
note "one bad block: given up after $took ms: $(grep 'given up' "$tmp/mirror.log")"

# Cancelled instead: it is named as well.
spawn mirror nbdmirror mirror "${control[two]}" "${uri[far]}" --resume
attached () { [ "$(status_of "${control[two]}" worker)" = attached ]; }
wait_for 10 attached
wait_state "${control[two]}" degraded 10
wait_for 10 only_it_is_left

# Until it is tried again there is nothing to do, so the worker sleeps; and a write wakes it.
switches () {
  cat "/proc/$1"/task/*/status | awk '/^voluntary_ctxt_switches/ { n += $2 } END { print n }'
}
sleeps_for_a_second () {
  local before
  before=$(switches "${pid[mirror]}")
  sleep 1
  woken=$(($(switches "${pid[mirror]}") - before))
  note "one bad block is left: $woken wake-ups in a second"
  [ $woken -le 5 ]
}
# ThreadSanitizer has a thread of its own that wakes up ten times a second.
[ "$sanitizers" = thread ] || wait_for 10 sleeps_for_a_second
copied=$(status_of "${control[two]}" sent-bytes)
"$python" -c 'import nbd, sys
h = nbd.NBD(); h.connect_uri(sys.argv[1]); h.pwrite(b"x" * 4096, 0)' "${uri[two]}"
more_was_copied () {
  [ "$(status_of "${control[two]}" sent-bytes)" -gt "$copied" ] && only_it_is_left
}
wait_for 1 more_was_copied
nbdmirror cancel "${control[two]}"
wait_exit mirror 10
[ "$status" = 6 ] || fail "cancelled: mirror ended with $status instead of 6"
grep -q "not copied: .*cannot read 4096 bytes at offset $bad" "$tmp/mirror.log" ||
  fail "cancelled: it does not name the block"

stop two
stop storage

# ---- a copy ----

start_fake storage --file "$tmp/image" --fault "read@$bad-$((bad + 4095))=error:EIO"
has_to_exit 1 nbdmirror copy "${uri[storage]}" "$tmp/copy"
grep -q "cannot read 4096 bytes at offset $bad: Input/output error" "$tmp/err" ||
  fail "copy does not name the block"
stop storage
start_fake storage --file "$tmp/image" --fault "read:3-40=error:EIO"
nbdmirror copy "${uri[storage]}" "$tmp/copy" --give-up-after 20s 2>"$tmp/err" ||
  fail "the copy has no patience"
grep -q 'it is tried again' "$tmp/err" || fail "copy does not say that it tries again"
cmp "$tmp/image" "$tmp/copy" || fail "the copy differs"
