#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that quarantine is emptied while a busy guest keeps every pass supplied with other blocks,
# over a destination that answers slowly: worker and source's server are killed, so that the whole
# disk is in quarantine and has to be read back; the new job becomes ready all the same, with
# many read-backs in flight in each connection, but not more than it has buffers for; and what it
# hands over is right.
. "$(dirname "$0")/lib.sh"

connections=2
size=$(bytes 64M)
random_disk "$tmp/disk" "$size"
start_server src "$tmp/disk"
server_paths dst
truncate -s "$size" "$tmp/copy"
spawn dst nbdkit -f -U "${socket[dst]}" --filter=log --filter=delay file "$tmp/copy" \
  rdelay=10ms wdelay=10ms logfile="$tmp/requests"
wait_for_socket "${socket[dst]}" dst

spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --connections $connections
wait_state "${control[src]}" ready 60
for name in mirror src; do
  kill -KILL "${pid[$name]}"
  wait "${pid[$name]}" 2>/dev/null || :
  unset "pid[$name]"
done

start_server src "$tmp/disk"
cat >"$tmp/guest.py" <<'PY'
import random, sys, time
import nbd
h = nbd.NBD()
h.connect_uri(sys.argv[1])
rate, blocks, begin, n = 2500, h.get_size() // 4096, time.monotonic(), 0
while time.monotonic() < begin + 120:
    h.pwrite(random.randbytes(4096), random.randrange(blocks) * 4096)
    n += 1
    time.sleep(max(0, begin + n / rate - time.monotonic()))
PY
spawn guest "$python" "$tmp/guest.py" "${uri[src]}"
: >"$tmp/requests"
spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --connections $connections \
  --policy none --restart \
  --max-downtime 2s
whole () { [ "$(status_of "${control[src]}" quarantine-bytes)" = "$size" ]; }
wait_for 10 whole
begin=$SECONDS
wait_state "${control[src]}" ready 60
running guest || fail "the guest has ended: this test proves nothing"
note "ready after $((SECONDS - begin)) s"

stop guest
wait_state "${control[src]}" ready 60
complete_soon "${control[src]}"
ends_well mirror
cmp "$tmp/disk" "$tmp/copy" || fail "cmp found a difference"

most=$("$python" -c '
import re, sys
now = most = 0
for line in open(sys.argv[1], errors="replace"):
    if re.search(r" Read id=", line):
        now += 1
        most = max(most, now)
    elif re.search(r"\.\.\.Read id=", line):
        now -= 1
print(most)' "$tmp/requests")
note "at most $most read-backs in flight"
[ "$most" -gt $((connections * 2)) ] || fail "at most $most read-backs were in flight"
[ "$most" -le $((connections * 64)) ] || fail "$most read-backs were in flight"
