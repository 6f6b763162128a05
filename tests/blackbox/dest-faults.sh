#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a destination which goes wrong in the middle, in every way we know of, ends or delays a live mirror and an
# offline copy as documented: the exit status, a message that names the destination and what happened, in bounded time;
# the guest never sees any of it; and where the fault passes, all is equal at the end.
. "$(dirname "$0")/lib.sh"
. "$srcdir/tests/blackbox/faults.sh"

# ---- it goes wrong once: a copy ends, resumable (3); a mirror reconnects ----
run_both "closes mid-request" 0 3 'closed|disconnect|EOF|reset|pipe' --fault write:5=close-mid
run_both "closes after a write" 0 3 'closed|disconnect|EOF|reset|pipe' --fault write:5=close-after
run_both "hangs after a write" 0 3 'not answer|no reply' --fault write:5=hang-after
run_both "never answers a write" 0 3 'not answer|no reply' --fault write:5=no-reply
run_both "EIO for a write" 0 3 'Input/output error' --fault write:5=error:EIO
run_both "ENOSPC for a write" 0 3 'No space left' --fault write:5=error:ENOSPC
run_both "EPERM for a write" 0 3 'not permitted' --fault write:5=error:EPERM
run_both "wrong cookie" 0 3 '.' --fault write:5=wrong-cookie
run_both "EIO for a zero request" 0 3 'Input/output error' --fault zero:1=error:EIO --holes-are-not-zero
run_both "closes before the flush's reply" 0 3 'closed|disconnect|EOF|reset' --fault flush:1=close
run_both "does the flush, never says so" 0 3 'not answer|no reply' --fault flush:1=hang
run_both "EIO for a flush" 0 3 'Input/output error' --fault flush:1=error:EIO
run_both "applies a write late" 0 3 'closed|disconnect|EOF|reset' --fault write:5=late:0.1

# A write of the lost session is applied after the new session began to copy (R12): the blocks wait in quarantine.  The
# guest rewrites them meanwhile, so what comes late is old.
late_write () {
  rm -f "$tmp"/live.* "$tmp/report"
  truncate -s "$size" "$tmp/live.img"
  cp "$tmp/disk" "$tmp/shadow"
  start_fake live --file "$tmp/live.img" --log "$tmp/live.requests" --fault write:1=late:1.5
  start_guest guest "${uri[src]}" --shadow "$tmp/shadow" --connections 1 --rate 100 --to 65536 --seconds 100
  spawn mirror timeout 25 "$NBDMIRROR" mirror "${control[src]}" "${uri[live]}" --restart --on-ready complete \
    "${limits[@]}" "$@" --report "$tmp/report"
  wait_exit mirror 30
  [ "$status" = 0 ] || fail "a write that comes late: mirror ended with $status"
  wait_for 10 grep -q applied-late "$tmp/live.requests"
  wait_exit guest 10
  [ "$status" = 0 ] || fail "a write that comes late: the guest saw an error: $(cat "$tmp/guest.json")"
  nbdmirror rollback "${control[src]}" --token "$(field rollback-token <"$tmp/report")" --destination-stopped \
    >"$tmp/rollback.log" 2>&1 || fail "a write that comes late: cannot roll back"
}
late_write
equal "$tmp/disk" "${uri[live]}"
note "ok: a write that comes late, with the default grace"
stop live

# With patience a copy recovers as well.
extra=(--give-up-after 10s)
run_both "closes mid-request, with patience" 0 0 '' --fault write:7=close-mid
run_both "EIO for a flush, with patience" 0 0 '' --fault flush:1=error:EIO
extra=()

# ---- it goes wrong for good: given up after the time asked for ----
run_both "EIO for ever" 3 3 'Input/output error' --fault write:5-=error:EIO
run_both "ENOSPC for ever" 3 3 'No space left' --fault write:5-=error:ENOSPC
run_both "never flushes" 3 3 'Input/output error' --fault flush:1-=error:EIO
run_both "hangs for ever" 3 3 'not answer|no reply' --fault write:5=hang-all
