#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a worker may die at any instant: it is killed -9 ten times (thirty in the long form)
# during one migration under a bandwidth limit, and another one resumes.  The guest notices nothing,
# its server never dies, the destination is equal at the end, and less than 1.5 times the disk's
# data was sent: by our counters, and by the destination's own log.
. "$(dirname "$0")/lib.sh"

kills=10 size=$(bytes 256M) longest_ms=600
[ -z "${NBDMIRROR_LONG:-}" ] || kills=30 size=$(bytes 768M)
RANDOM=${SEED:-$$}
note "SEED=${SEED:-$$}"

shadowed_disk "$size"
start_server src "$tmp/disk"
source_pid=${pid[src]}

# A killed worker may take an nbdkit of 1.32.4 to 1.33.9 down: it is started again, as receive
# would.
starts=0
keep_destination () {
  running dst && return
  [ -z "${pid[dst]:-}" ] || wait "${pid[dst]}" 2>/dev/null || :
  starts=$((starts + 1))
  server_paths dst
  rm -f "${socket[dst]}"
  [ -e "$tmp/dst.img" ] || truncate -s "$size" "$tmp/dst.img"
  spawn dst nbdkit -f -U "${socket[dst]}" --filter=log file "$tmp/dst.img" \
    "logfile=$tmp/requests.$starts"
  wait_for_socket "${socket[dst]}" dst
}
keep_destination

start_guest guest "${uri[src]}" --shadow "$tmp/shadow" --rate 15 --seconds 600

attached () { [ "$(status_of "${control[src]}" worker)" = attached ]; }

# The abort bug may take the destination's server down a moment after keep_destination saw it
# running. A worker that cannot connect at first ends at once, which is right; then both are started
# again.
start_worker () {
  keep_destination
  # shellcheck disable=SC2086
  spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --max-downtime 2s \
    --policy none $resume --bandwidth 64M
}
attached_or_ended () { attached || ! running mirror; }

resume=
for ((i = 1; i <= kills; i++)); do
  start_worker
  wait_for 20 attached_or_ended
  if ! running mirror && ! running dst; then
    start_worker
    wait_for 20 attached_or_ended
  fi
  resume=--resume
  sleep "0.$(printf %03d $((RANDOM % longest_ms)))"
  running mirror || fail "the worker ended by itself before kill $i"
  kill -KILL "${pid[mirror]}"
  wait "${pid[mirror]}" 2>/dev/null || :
  unset "pid[mirror]"
  running guest || fail "the guest ended at kill $i: $(cat "$tmp/guest.json")"
  wait_state "${control[src]}" detached 20
  [ "$(status_of "${control[src]}" gate)" = open ] || fail "the gate is not open after kill $i"
done
left=$(status_of "${control[src]}" dirty-bytes)

keep_destination
spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --max-downtime 2s --policy none \
  --resume --on-ready complete --bandwidth 64M \
  --report "$tmp/report"
deadline=$((SECONDS + 60))
while running mirror; do
  [ $SECONDS -le $deadline ] || fail "the last worker does not come to its end"
  keep_destination
  sleep 0.2
done
ends_well mirror 1
ends_well guest 10
[ "$(field fenced <"$tmp/guest.json")" = true ] || fail "the guest was not refused at the end"
if ! running src || [ "${pid[src]}" != "$source_pid" ]; then
  fail "the guest's server died"
fi

equal "$tmp/disk" "${uri[dst]}"
shadow_equal
stop dst
cmp "$tmp/disk" "$tmp/dst.img" || fail "cmp found a difference"

[ "$(field state <"$tmp/report")" = completed ] || fail "the report does not say completed"
counted=$(field sent-bytes <"$tmp/report")
# "… Write id=4 offset=0x0 count=0x40000 fua=0 …": bytes that reached the destination.
logged=$("$python" -c '
import glob, re, sys
print(sum(int(m[1], 16) for f in glob.glob(sys.argv[1] + "/requests.*") for line in open(f)
          for m in [re.search(r" Write .* count=(0x[0-9a-f]+)", line)] if m))' "$tmp")
note "$kills kills: $((counted * 100 / size)) % of the data sent by our count," \
  "$((logged * 100 / size)) % by the destination's; left at the last kill" \
  "$((left * 100 / size)) %; the destination was started $starts times;" \
  "guest: $(cat "$tmp/guest.json")"
[ "$logged" -ge "$size" ] ||
  fail "the destination's log does not even have the disk once: $logged bytes"
[ $((counted * 2)) -lt $((size * 3)) ] || fail "$counted bytes were sent for $size"
[ $((logged * 2)) -lt $((size * 3)) ] || fail "$logged bytes reached the destination for $size"
# Sent by our count is what was handed to the socket, so it may be more than what arrived, but not
# less.
[ $((counted * 100)) -ge $((logged * 98)) ] ||
  fail "sent-bytes says $counted, the destination $logged"
