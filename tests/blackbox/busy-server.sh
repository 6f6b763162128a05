#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a guest on several connections, with every thread of the server busy, is mirrored and
# handed over while status is polled a hundred times a second, settings change every 10 ms, and
# clients come and go.
. "$(dirname "$0")/lib.sh"
measures_times
need fio
need_fio_nbd

random_disk "$tmp/disk" 96M
start_server src "$tmp/disk"
start_dest dst file 96M
for i in 1 2 3; do
  start_fio "fio$i" "${uri[src]}" --iodepth=32 --rate_iops=1500 --offset=$(((i - 1) * 32))M \
    --size=32M \
    --rwmixread=20 --rw=randrw
done

spawn worker nbdmirror mirror "${control[src]}" "${uri[dst]}" --report "$tmp/report" --bandwidth 40M

# One client that polls status 100 times a second over one connection, one that connects anew each
# time, one that changes the settings.
spawn poller "$python" - "${control[src]}" "$sanitizers" <<'PY'
import json, socket, sys, time
path = sys.argv[1]
def connect():
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(5)
    s.connect(path)
    f = s.makefile("rwb", buffering=0)
    json.loads(f.readline())
    return f
def call(f, name, **args):
    f.write(json.dumps({"execute": name, "arguments": args}).encode() + b"\n")
    while True:
        answer = json.loads(f.readline())
        if "event" not in answer:
            return answer
one = connect()
call(one, "qmp_capabilities")
n = slow = 0
states = set()
end = time.monotonic() + 60
while time.monotonic() < end:
    start = time.monotonic()
    status = call(one, "query-mirror")["return"]
    took = time.monotonic() - start
    slow += took > 1
    n += 1
    states.add(status["state"])
    if n % 10 == 0:
        other = connect()
        call(other, "qmp_capabilities")
        call(other, "query-block-jobs")
        other.close()
    call(one, "mirror-set", **{"bandwidth-limit": (40 << 20) + n % 2 * (20 << 20)})
    if status["state"] == "completed":
        break
    time.sleep(max(0, 0.01 - (time.monotonic() - start)))
print("polls", n, "slow", slow, sorted(states))
assert n >= 100 and "completed" in states, (n, states)
assert slow == 0 or sys.argv[2], slow   # with a sanitizer it depends on the machine
PY

wait_state "${control[src]}" ready 60
sleep 1
# Ready is a live state: under this load it may come and go.
wait_for 30 "$NBDMIRROR" complete "${control[src]}" >"$tmp/complete.out" 2>&1
ends_well worker
ends_well poller
for i in 1 2 3; do
  wait_exit "fio$i" 30 # it fails with EPERM now
done
equal "$tmp/disk" "${uri[dst]}"
running src || fail "the source server has ended"
