#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a destination which cannot be reached, or must not be written to, ends a live mirror
# and an offline copy as documented: the exit status, a message that names the destination and the
# reason, in bounded time, nothing written and the guest untouched; and that one which merely cannot
# do everything is written all the same, and equal at the end.
. "$(dirname "$0")/lib.sh"
proves_nothing_under address
proves_nothing_under thread
. "$srcdir/tests/blackbox/faults.sh"

# ---- it never gets anywhere: at once ----
run_both "connection refused" 3 3 'onnection refused' --handshake refuse
run_both "accepts, and says nothing" 3 3 'not answer|no reply' --handshake hang
run_both "closes on accept" 3 3 'closed|disconnect|EOF|reset' --handshake close
run_both "speaks another protocol" 3 3 'magic|not an NBD|NBD' --handshake bad-magic
run_both "hello, then silence" 3 3 'not answer|no reply' --handshake hello-hang
run_both "hello, then closes" 3 3 'closed|disconnect|EOF|reset' --handshake hello-close
run_both "closes before the first request" 3 3 'closed|disconnect|EOF|reset' --handshake go-close

# ---- it must not be written to ----
run_both "smaller" 7 7 'too small' --size $((size - 512))
run_both "read-only" 7 7 'read-only' --read-only
run_both "cannot flush" 7 7 'flush' --no-flush
extra=(--allow-unsafe-destination)
run_both "cannot flush, accepted" 0 0 '' --no-flush
extra=()
run_both "larger" 0 0 'larger' --size $((size + 70000))
run_both "minimum block of 4 KiB, odd end" 7 7 'multiples of' --min-block 4096
run_both "minimum block of 4 KiB" 0 0 '' --min-block 4096 --size $((size + 4096 - 512))

# ---- it cannot do everything: done otherwise ----
run_both "no zero, no trim, no FUA" 0 0 '' --no-zero --no-trim --no-fua
run_both "no structured replies" 0 0 '' --no-structured
run_both "no block status" 0 0 '' --no-status
run_both "holes do not read as zero" 0 0 '' --holes-are-not-zero
run_both "small requests only" 0 0 '' --max-block 65536

# ---- it is the source itself, by a way that its name does not show ----
# refused_as_itself WHAT CONTROL DEST...
refused_as_itself () {
  local what=$1; shift
  has_to_exit 7 nbdmirror mirror "$@"
  grep -q 'leads to the source itself' "$tmp/err" ||
    fail "$what: refused, but not for that: $(cat "$tmp/err")"
  [ "$(status_of "$1" state)" = idle ] || fail "$what: a job was left behind"
}
truncate -s 1M "$tmp/itself"
port=$(free_port)
server_paths tcp
spawn tcp "${nbdmirror_prefix[@]}" "${server_env[@]}" nbdkit -f -i 127.0.0.1 -p "$port" \
  --filter="$NBDMIRROR_FILTER" file "$tmp/itself" "mirror-control=${control[tcp]}" \
  "mirror-uri=nbd://127.0.0.1:$port/"
wait_for_socket "${control[tcp]}" tcp
refused_as_itself "another host name" "${control[tcp]}" "nbd://localhost:$port/"
stop tcp
start_server itself "$tmp/itself"
if nbdkit nbd --version >/dev/null 2>&1; then
  refused_as_itself "a proxy it starts" "${control[itself]}" '[' nbdkit nbd \
    "socket=${socket[itself]}" ']'
  spawn proxy nbdkit -f -U "$tmp/proxy.sock" nbd "socket=${socket[itself]}"
  wait_for_socket "$tmp/proxy.sock" proxy
  refused_as_itself "a proxy" "${control[itself]}" "nbd+unix:///?socket=$tmp/proxy.sock"
fi
# A guest that connects now and then is no sign of it.
spawn guests "$python" -c 'import nbd, sys, time
while True:
    h = nbd.NBD(); h.connect_uri(sys.argv[1]); h.shutdown(); time.sleep(0.02)' "${uri[itself]}"
start_dest other memory 1M
nbdmirror mirror "${control[itself]}" "${uri[other]}" --on-ready complete >"$tmp/out" 2>&1 ||
  fail "$(cat "$tmp/out")"
