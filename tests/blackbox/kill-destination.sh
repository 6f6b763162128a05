#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that the destination may go at any time: its server is killed -9 and started again four
# times (twenty in the long form) while the guest writes, the worker reconnects by itself, and all
# is equal at the end; so it is where each kill loses what was not flushed.  If it comes back empty,
# or as another disk, the job is refused (exit 7), also with --resume, and not one byte is written
# there.
. "$(dirname "$0")/lib.sh"
proves_nothing_under address

kills=4 size=$(bytes 48M)
[ -z "${NBDMIRROR_LONG:-}" ] || kills=20 size=$(bytes 256M)
RANDOM=${SEED:-$$}
note "SEED=${SEED:-$$}"

begin () {
  rm -f "$tmp/src.control.fence" "$tmp"/dst.*
  shadowed_disk "$size"
  start_server src "$tmp/disk"
  $start_destination
  start_guest guest "${uri[src]}" --shadow "$tmp/shadow" --rate 40 --seconds 600
}
kill_destination () {
  kill -KILL "${pid[dst]}"
  wait "${pid[dst]}" 2>/dev/null || :
  unset "pid[dst]"
}
# resume: go on, until it is ready.
attached () { [ "$(status_of "${control[src]}" worker)" = attached ]; }
resume () {
  : >"$tmp/mirror.log"
  spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --max-downtime 2s --policy none \
    --resume --quarantine-grace 300ms
  wait_for 20 attached
  wait_for 20 not_failed
  wait_state "${control[src]}" ready 60
}
not_failed () { [ "$(status_of "${control[src]}" state)" != failed ]; }
guest_is_well () {
  running guest || fail "$1: the guest ended: $(cat "$tmp/guest.json")"
  [ "$(status_of "${control[src]}" gate)" = open ] || fail "$1: the gate is not open"
}

# ---- killed and started again ----

start_plain () { start_dest dst file "$size"; }
# A power cut each time: what was written and not flushed is gone (rules R4, R5).
start_volatile () {
  [ -e "$tmp/dst.img" ] || truncate -s "$size" "$tmp/dst.img"
  start_fake dst --file "$tmp/dst.img" --volatile --multi-conn
}

kills_with () {
  start_destination=$1
  begin
  spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --max-downtime 2s --policy none \
    --bandwidth 16M --quarantine-grace 300ms \
    --report "$tmp/report"
  for ((i = 1; i <= kills; i++)); do
    wait_state "${control[src]}" 'copying|ready' 30
    sleep "0.$(printf %03d $((RANDOM % 900)))"
    kill_destination
    wait_state "${control[src]}" degraded 10
    guest_is_well "kill $i"
    running mirror || fail "the worker ended at kill $i"
    $start_destination
  done
  wait_state "${control[src]}" ready 60
  complete_soon "${control[src]}"
  ends_well mirror
  ends_well guest 10
  reconnects=$(field reconnects <"$tmp/report")
  [ "$reconnects" -ge "$kills" ] || fail "$kills kills, but $reconnects reconnects"
  equal "$tmp/disk" "${uri[dst]}"
  shadow_equal
  stop dst
  cmp "$tmp/disk" "$tmp/dst.img" || fail "cmp found a difference"
  note "$1: $kills kills, $reconnects reconnects; guest: $(cat "$tmp/guest.json")"
  stop src
}

kills_with start_plain
[ -n "${NBDMIRROR_LONG:-}" ] || size=$(bytes 24M)
kills_with start_volatile
start_destination=start_plain

# ---- back, but not the same ----

# refused WHAT: with what lies in $tmp/other as the destination now.
refused () {
  local before
  kill_destination
  mv "$tmp/dst.img" "$tmp/good"
  cp --sparse=always "$tmp/other" "$tmp/dst.img"
  before=$(sha256sum <"$tmp/dst.img")
  wait_state "${control[src]}" degraded 10
  start_dest dst file "$size"
  wait_exit mirror 30
  [ "$status" = 7 ] || fail "$1: the worker ended with $status instead of 7"
  grep -q 'refused: .*not the destination' "$tmp/mirror.log" ||
    fail "$1: the message does not say why"
  guest_is_well "$1"
  # Another worker does not get any further.
  has_to_exit 7 timeout 30 "$NBDMIRROR" mirror "${control[src]}" "${uri[dst]}" --resume
  grep -q 'not the destination' "$tmp/err" || fail "$1: --resume does not say why"
  stop dst
  [ "$(sha256sum <"$tmp/dst.img")" = "$before" ] || fail "$1: something was written to it"
  # With the right one it goes on.
  mv "$tmp/good" "$tmp/dst.img"
  start_dest dst file "$size"
}

begin
: >"$tmp/mirror.log"
spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --max-downtime 2s --policy none \
  --bandwidth 48M
wait_state "${control[src]}" ready 60
# Ready is soon, with a downtime of 2 s; but only by what was flushed can the destination be told
# from another.
flushed () {
  nbdmirror status --json "${control[src]}" >"$tmp/status"
  [ $(($(field dirty-bytes <"$tmp/status") + $(field claimed-bytes <"$tmp/status"))) -lt \
    $((size / 4)) ]
}
wait_for 20 flushed
truncate -s "$size" "$tmp/other"
refused "empty"

resume
head -c "$size" /dev/urandom >"$tmp/other"
refused "another disk"

# A smaller one is another one, too.
resume
kill_destination
wait_state "${control[src]}" degraded 10
cp "$tmp/dst.img" "$tmp/good"
truncate -s $((size - 1)) "$tmp/dst.img"
start_dest dst file 0
wait_exit mirror 30
[ "$status" = 7 ] || fail "smaller: the worker ended with $status instead of 7"
cmp -n $((size - 1)) "$tmp/good" "$tmp/dst.img" || fail "smaller: something was written to it"
guest_is_well "smaller"
stop dst
mv "$tmp/good" "$tmp/dst.img"
start_dest dst file "$size"

nbdmirror mirror "${control[src]}" "${uri[dst]}" --max-downtime 2s --policy none --resume \
  --on-ready complete >"$tmp/mirror.log" 2>&1 </dev/null ||
  fail "the last worker ended with $?"
ends_well guest 10
equal "$tmp/disk" "${uri[dst]}"
shadow_equal
