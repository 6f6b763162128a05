#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Proves that a hand-over slows a guest that rewrites much down rather than hold it for all of that:
# under policy sync the gate is synchronous before it is held, and open again where the hand-over
# was given up; under policy none it is only held.  And what is handed over is what the guest wrote.

. "$(dirname "$0")/lib.sh"
need_fio_nbd

random_disk "$tmp/disk" 8M
start_server src "$tmp/disk"
start_dest dst file 8M
# 1 MiB over and over: at 4 MiB/s some 250 ms, whenever one looks.
spawn fio fio --name=late --ioengine=nbd --uri="${uri[src]}" --rw=randwrite --bs=4k --size=1M \
  --iodepth=4 \
  --time_based --runtime=120 --norandommap
spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --policy none --bandwidth 4M \
  --max-downtime 2s
wait_state "${control[src]}" ready 60

# gates COMMAND...: -> $gates, the modes that the gate went through while the command ran and in the
# second after; again while it says "not ready", because that state comes and goes
gates () {
  "$python" -B - "$srcdir/tests/blackbox" "${control[src]}" "$@" >"$tmp/gates" <<'PY' ||
import subprocess, sys, time
sys.path.insert(0, sys.argv[1])
from filter_client import Client
end = time.monotonic() + 30
while True:
    c = Client(sys.argv[2])
    p = subprocess.run(sys.argv[3:], capture_output=True, text=True)
    if p.returncode == 0 or "not ready" not in p.stderr or time.monotonic() > end:
        break
    time.sleep(0.1)
if p.returncode != 0:
    sys.exit(print(p.stdout + p.stderr) or 1)
time.sleep(1)
c.status()
print(*(e["data"]["gate"] for e in c.events if e["event"] == "MIRROR_GATE"))
PY
    fail "$*: $(cat "$tmp/gates")"
  gates=$(cat "$tmp/gates")
  note "${1##*/}: the gate was $gates"
}

# A coordinator that prepares the disk and then changes its mind.
rehearsal='
import sys
sys.path.insert(0, sys.argv[1])
from filter_client import Client, Word
c, word = Client(sys.argv[2]), Word()
c.call("mirror-prepare", fd=word.fd, timeout=60, lease_ms=30000, rollback_token="test")
word.set(2)
c.call("mirror-release")'
rehearse () { gates "$python" -B -c "$rehearsal" "$srcdir/tests/blackbox" "${control[src]}"; }

rehearse
[ "$gates" = "held open" ] || fail "policy none"

has_to_exit 0 nbdmirror set "${control[src]}" policy=sync
wait_state "${control[src]}" ready 20
[ "$(status_of "${control[src]}" gate)" = open ] || fail "the gate is not open before the hand-over"
rehearse
case $gates in
  "synchronous held open" | "synchronous held synchronous open") ;;
  *) fail "policy sync, given up" ;;
esac

wait_state "${control[src]}" ready 20
gates "$NBDMIRROR" complete "${control[src]}"
[ "$gates" = "synchronous held fenced" ] || fail "policy sync"
ends_well mirror
wait_exit fio 20
equal "$tmp/disk" "${uri[dst]}"
