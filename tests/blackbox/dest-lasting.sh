#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves what becomes of faults that do not pass at once: writes of a lost session that are applied
# later do no harm, since its blocks wait in quarantine and are read back; a copy that has patience
# recovers, too; a destination that takes every connection and then fails is given up after the time
# asked for, and the guest never sees any of it.
. "$(dirname "$0")/lib.sh"
proves_nothing_under address
proves_nothing_under thread
. "$srcdir/tests/blackbox/faults.sh"

# ---- it goes wrong for good: given up after the time asked for ----
run_both "EIO for ever" 3 3 'Input/output error' --fault write:5-=error:EIO
run_both "ENOSPC for ever" 3 3 'No space left.*make room there' --fault write:5-=error:ENOSPC
run_both "never flushes" 3 3 'Input/output error' --fault flush:1-=error:EIO
# These will never pass: that is known after a few tries, however patient one is.
extra=(--give-up-after 1h)
run_both "EPERM for ever" 3 3 'Operation not permitted .the same at each of 3 tries' \
  --fault write:5-=error:EPERM
extra=()
head -c "$(bytes "$size")" /dev/urandom >"$tmp/nozero.img" \
  # what is zero there already is not written
start_fake nozero --file "$tmp/nozero.img" --fault zero:1-=error:ENOTSUP
has_to_exit 3 timeout 25 "$NBDMIRROR" copy "$tmp/offline" "${uri[nozero]}" --give-up-after 1h
grep -q 'Operation not supported (the same at each of 3 tries)' "$tmp/err" ||
  fail "another reason: $(cat "$tmp/err")"
stop nozero
run_both "hangs for ever" 3 3 'not answer|no reply' --fault write:5=hang-all

# ---- patience: a copy recovers as well ----
extra=(--give-up-after 10s)
run_both "closes mid-request, with patience" 0 0 '' --fault write:7=close-mid
run_both "EIO for a flush, with patience" 0 0 '' --fault flush:2=error:EIO
extra=()

# ---- too late ----
# late_write WHAT GUEST-SECONDS FAULTS MIRROR-OPTIONS...: the destination's first write is applied
# after the new session began to copy (R12); the guest has rewritten these blocks meanwhile, so what
# comes late is old.
late_write () {
  local what=$1 seconds=$2 faults=$3; shift 3
  rm -f "$tmp"/live.* "$tmp/report"
  truncate -s "$size" "$tmp/live.img"
  # shellcheck disable=SC2086
  start_fake live --file "$tmp/live.img" --log "$tmp/live.requests" $faults
  start_guest guest "${uri[src]}" --connections 1 --rate 100 --mix write --to 65536 \
    --seconds "$seconds"
  spawn mirror timeout 25 "$NBDMIRROR" mirror "${control[src]}" "${uri[live]}" --max-downtime 2s \
    --restart --on-ready complete \
    --report "$tmp/report" "$@"
  ends_well mirror 30 "$what"
  wait_for 10 grep -q applied-late "$tmp/live.requests"
  ends_well guest 10 "$what"
  equal "$tmp/disk" "${uri[live]}"
  roll_back "${control[src]}" >"$tmp/rollback.log" 2>&1 || fail "$what: cannot roll back"
  stop live
  note "ok: $what"
}
late_write "a write that comes late, within the grace" 100 '--fault write:1=late:2.5' \
  --quarantine-grace 4s
# It comes between the second write of the blocks and its reply, that is, before they are read back.
late_write "a write that comes late, before the read-back" 1 \
  '--fault write:1=late:2.3 --fault write@0-65535=delay:2' \
  --quarantine-grace 1s --request-timeout 10s

# ---- stopped for a while (SIGSTOP), then it goes on ----
rm -f "$tmp"/live.* "$tmp/report"
truncate -s "$size" "$tmp/live.img"
start_fake live --file "$tmp/live.img"
start_guest guest "${uri[src]}" --connections 2 --rate 50 --seconds 100
: >"$tmp/mirror.log"
spawn mirror nbdmirror mirror "${control[src]}" "${uri[live]}" --restart \
  --max-downtime 2s "${limits[@]}" \
  --report "$tmp/report"
wait_for 20 grep -q ready "$tmp/mirror.log"
sigstop "${pid[live]}"
wait_state "${control[src]}" degraded 20
sleep $((${NBDMIRROR_LONG:+28} + 2))
running guest || fail "stopped: the guest ended: $(cat "$tmp/guest.json")"
kill -CONT "${pid[live]}"
wait_state "${control[src]}" ready 40
complete_soon "${control[src]}"
ends_well mirror 20 stopped
ends_well guest 10 stopped
[ "$(field reconnects <"$tmp/report")" -ge 1 ] || fail "stopped: the worker never noticed"
equal "$tmp/disk" "${uri[live]}"
note "ok: stopped for a while: guest $(cat "$tmp/guest.json")"
