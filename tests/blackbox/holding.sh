# SPDX-License-Identifier: LGPL-2.1-or-later
# shellcheck shell=bash disable=SC2034,SC2120,SC2154
#
# For tests of what happens while the gate is held: source it after lib.sh.  A hold is made long by
# leaving a few mebibytes for it, under a low bandwidth limit.

holding_size=$(bytes 32M)

# How long a step may take.  A busy machine runs nobody at once.
read -r load _ </proc/loadavg
prompt=1.0
[ "${load%%.*}" -lt $(($(nproc) * 2)) ] || prompt=4.0

# begin_holding DEST-COMMAND...: start the source, the destination (by that command), a guest, the
# pulse, and a worker, and wait until it is ready.
begin_holding () {
  rm -f "$tmp/src.control.fence" "$tmp"/dst.* "$tmp/pulse"
  shadowed_disk "$holding_size"
  start_server src "$tmp/disk"
  "$@"
  start_guest guest "${uri[src]}" --shadow "$tmp/shadow" --from $((16 << 20)) --rate 10 \
    --seconds 600
  spawn pulse "$python" "$srcdir/tests/blackbox/pulse.py" "${uri[src]}" "$tmp/pulse"
  start_worker
}

# start_worker [OPTIONS...]: start a worker, and wait until it is ready.
start_worker () {
  : >"$tmp/mirror.log"
  spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --quarantine-grace 200ms \
    --policy none --max-downtime 60s \
    --report "$tmp/report" "$@"
  wait_for 20 status_is worker attached
  wait_for 20 status_is_not state failed
  wait_state "${control[src]}" ready 30
}

status_is () { [ "$(status_of "${control[src]}" "$1")" = "$2" ]; }
status_is_not () { [ "$(status_of "${control[src]}" "$1")" != "$2" ]; }

# leave_much [MIB]: leave so many MiB (6) to be copied at 1 MiB/s, so that a hold takes as many
# seconds less one, and wait until the job is ready.
leave_much () {
  local mib=${1:-6}
  nbdmirror set "${control[src]}" bandwidth=1M >/dev/null
  "$python" - "${uri[src]}" "$mib" <<'PY'
import nbd, random, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for i in range(int(sys.argv[2]) * 16):
    h.pwrite(random.randbytes(65536), (8 << 20) + (i << 16))
h.shutdown()
PY
  sleep 0.5     # so that it is not the state of before
  wait_state "${control[src]}" ready 20
}

# start_holding LEASE [MIB]: run `nbdmirror complete`, and wait until the gate has been held for
# half a second.  $held_at is the time then.
start_holding () {
  leave_much ${2:+"$2"}
  : >"$tmp/complete.log"
  spawn complete nbdmirror complete "${control[src]}" --lease "$1"
  wait_for 10 status_is gate held
  sleep 0.5
  held_at=$EPOCHREALTIME
  status_is state holding || fail "the state is not holding"
}

# start_prepared LEASE-MS: let a coordinator that does not decide prepare the disk.  $held_at is the
# time then.
start_prepared () {
  : >"$tmp/prepare.log"
  spawn prepare "$python" "$srcdir/tests/blackbox/prepare.py" "${control[src]}" "$1"
  wait_for 30 grep -q . "$tmp/prepare.log"
  grep -q '^prepared' "$tmp/prepare.log" || fail "not prepared: $(cat "$tmp/prepare.log")"
  status_is gate held || fail "prepared, but the gate is not held"
  sleep 0.5
  held_at=$EPOCHREALTIME
}

# went_on WHAT T SECONDS: the pulse stood still at the time T.  It has to go on within SECONDS.
went_on () {
  local out
  wait_for 30 status_is gate open
  sleep 0.1
  wait_for 5 "$python" "$srcdir/tests/blackbox/pulse.py" --after "$tmp/pulse" "$2"
  out=$("$python" "$srcdir/tests/blackbox/pulse.py" --after "$tmp/pulse" "$2")
  note "$1: the guest went on ${out% *} s later, after ${out#* } s of waiting"
  awk -v o="$out" -v m="$3" 'BEGIN { split (o, t, " "); exit !(t[1] <= m) }' ||
    fail "$1: the guest waited ${out% *} s longer, more than $3 s"
  awk -v o="$out" 'BEGIN { split (o, t, " "); exit !(t[2] >= 0.2) }' ||
    fail "$1: the guest was not held at all"
  guests_are_well "$1"
  [ ! -e "$tmp/src.control.fence" ] || fail "$1: there is a fence"
}
guests_are_well () {
  running guest || fail "$1: the guest ended: $(cat "$tmp/guest.json")"
  running pulse || fail "$1: the pulse ended: $(tail -n 1 "$tmp/pulse")"
  running src || fail "$1: the source's server ended"
}

# complete_and_compare: hand over for good, and compare the disks.
complete_and_compare () {
  nbdmirror set "${control[src]}" bandwidth=none >/dev/null
  complete_soon "${control[src]}"
  ends_well mirror
  ends_well guest
  ends_well pulse
  equal "$tmp/disk" "${uri[dst]}"
  shadow_equal $((16 << 20))
}
