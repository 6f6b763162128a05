#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves what `set synchronous=on` promises: a guest's write is at the destination when it is
# answered, a FLUSH and a write with FUA have been flushed there; this begins to be so, and is said
# (synchronised), while the guest writes as fast as it can during a full first pass under a
# bandwidth limit; and it ends with synchronous=off.
. "$(dirname "$0")/lib.sh"

# ---- each single write, looked at ----

size=$(bytes 8M)
random_disk "$tmp/disk" "$size"
start_server src "$tmp/disk"
start_eval dst "$size" "sleep 0.01" "echo flush >>$tmp/flushes"

# look N: so many writes, zeroes and flushes of a guest; prints how many of these were missing at
# the destination when they were answered.
look () {
  "$python" - "${uri[src]}" "$tmp/dst.img" "$tmp/flushes" "$1" <<'PY'
import nbd, os, random, sys
uri, copy, flushes, n = sys.argv[1:4] + [int(sys.argv[4])]
h = nbd.NBD()
h.connect_uri(uri)
size = h.get_size()
count = lambda: os.path.getsize(flushes) if os.path.exists(flushes) else 0
missing = []
with open(copy, "rb", buffering=0) as f:
    for i in range(n):
        kind = ("write", "write of many blocks", "fua", "flush", "zero")[i % 5]
        length = 70000 if "many" in kind else 5000
        offset = random.randrange(size - length)
        before = count()
        data = bytes(length) if kind == "zero" else random.randbytes(length)
        if kind == "flush":
            h.flush()
        elif kind == "zero":
            h.zero(length, offset)
        else:
            h.pwrite(data, offset, nbd.CMD_FLAG_FUA if kind == "fua" else 0)
        if kind != "flush" and os.pread(f.fileno(), length, offset) != data:
            missing.append(kind)
        if kind in ("flush", "fua") and count() == before:
            missing.append(kind + " (flush)")
h.shutdown()
print(len(missing))
print(missing[:5], file=sys.stderr)
PY
}

synchronised () { [ "$(status_of "${control[src]}" synchronised)" = "${1:-true}" ]; }

spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --max-downtime 10s \
  --max-write-delay 5s
wait_state "${control[src]}" ready 60
synchronised false || fail "synchronised though nothing waits"
[ "$(status_of "${control[src]}" gate)" = open ] || fail "the gate is not open"
[ "$(look 20)" -gt 0 ] ||
  fail "writes reach the destination at once though the gate is open: this test sees nothing"

nbdmirror set "${control[src]}" synchronous=on
[ "$(status_of "${control[src]}" gate)" = synchronous ] || fail "the gate is not synchronous"
wait_for 20 synchronised
missing=$(look 60)
[ "$missing" = 0 ] || fail "$missing of 60 were missing at the destination when they were answered"
synchronised || fail "no longer synchronised"
[ "$(status_of "${control[src]}" delayed-writes)" -ge 60 ] || fail "delayed-writes does not count"
[ "$(status_of "${control[src]}" missed-writes)" = 0 ] || fail "there were missed writes"
nbdmirror status "${control[src]}" >"$tmp/out"
grep -q 'synchronous, synchronised; .* writes waited, up to' "$tmp/out" ||
  fail "status: $(cat "$tmp/out")"

# Paused: nobody waits for what is not being done; and it comes back.
nbdmirror pause "${control[src]}"
[ "$(status_of "${control[src]}" gate)" = open ] || fail "the gate is not open while paused"
look 5 >/dev/null
nbdmirror resume "${control[src]}"
wait_for 20 synchronised
[ "$(look 10)" = 0 ] || fail "not synchronous after a pause"

nbdmirror set "${control[src]}" synchronous=off
[ "$(status_of "${control[src]}" gate)" = open ] ||
  fail "the gate is not open after synchronous=off"
synchronised false || fail "synchronised after synchronous=off"
has_to_exit 0 nbdmirror set "${control[src]}" synchronous=on max-write-delay=3s
wait_for 20 synchronised
[ "$(status_of "${control[src]}" max-write-delay-ms)" = 3000.0 ] ||
  fail "max-write-delay was not set"
complete_soon "${control[src]}"
ends_well mirror
equal "$tmp/disk" "$tmp/dst.img"
stop src
stop dst

# ---- a full first pass under load ----

size=$(bytes 48M)
rm -f "$tmp"/src.control*
shadowed_disk "$size"
start_server src "$tmp/disk"
start_dest dst2 file "$size"
start_guest guest "${uri[src]}" --shadow "$tmp/shadow" --rate 100000 --seconds 600
spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst2]}" --bandwidth 12M --max-downtime 2s \
  --report "$tmp/report"
wait_state "${control[src]}" 'copying|ready' 20
nbdmirror set "${control[src]}" synchronous=on
wait_for 60 synchronised
note "synchronised with $(status_of "${control[src]}" sent-bytes) of $size bytes sent," \
  "pass $(status_of "${control[src]}" pass)"
complete_soon "${control[src]}"
ends_well mirror
ends_well guest
note "the guest: $(cat "$tmp/guest.json")"
[ "$(field delayed-writes <"$tmp/report")" -gt 0 ] ||
  fail "the report does not tell how many writes waited"
equal "$tmp/disk" "${uri[dst2]}"
shadow_equal
