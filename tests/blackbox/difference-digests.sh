#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that `--sync compare` compares by digests where the destination serves them: the blocks
# that differ are sent, and of all the rest only digests cross the line, which is half a percent. A
# live mirror is exact as well, with a guest that writes and a worker that is killed.
. "$(dirname "$0")/lib.sh"
nbdkit --filter=stats null --dump-plugin >/dev/null 2>&1 || skip "nbdkit has no stats filter"

size=$((32 * 1048576 + 1536)) # an odd tail
head -c "$size" /dev/urandom >"$tmp/disk"
head -c 4M /dev/zero | dd of="$tmp/disk" bs=1M seek=8 conv=notrunc status=none
fallocate -p -o 16M -l 4M "$tmp/disk"

# serve: $tmp/dst with digests, and what clients ask for counted.
serve () {
  server_paths dst
  rm -f "${socket[dst]}" "$tmp/stats"
  spawn dst "${server_env[@]}" nbdkit -f -U "${socket[dst]}" --filter=stats \
    --filter="$NBDMIRROR_DIGEST_FILTER" file "$tmp/dst" statsfile="$tmp/stats"
  wait_for_socket "${socket[dst]}" dst
}
# moved read|write: bytes, as nbdkit counted them.
moved () {
  "$python" - "$tmp/stats" "$1" <<'PY'
import re, sys
units = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
for line in open(sys.argv[1]):
    match = re.match(sys.argv[2] + r": \d+ ops, [\d.]+ s, ([\d.]+) (\w+)", line)
    if match:
        print(int(float(match[1]) * units[match[2]]))
        break
else:
    print(0)
PY
}
poke () { head -c "$2" /dev/urandom | dd of="$tmp/dst" bs=1 seek="$1" conv=notrunc status=none; }

# ---- a copy ----

cp "$tmp/disk" "$tmp/dst"
poke 100 1                    # one byte of the first block
poke $((9 * 1048576)) 5000    # two blocks where the source has zeroes
poke $((17 * 1048576)) 5000   # and where it has a hole
poke $((size - 1)) 1          # the tail
poke $((20 * 1048576)) 65536
serve
has_to_exit 0 nbdmirror copy "$tmp/disk" "${uri[dst]}" --sync compare --report "$tmp/report"
! grep -q 'serves no digests' "$tmp/err" || fail "it was read"
stop dst TERM
cmp "$tmp/disk" "$tmp/dst" || fail "the copy differs"
read=$(moved read) written=$(moved write)
note "changed 82 KiB of $((size >> 20)) MiB: $written bytes written, $read bytes read"
[ "$written" -le $((65536 + 4 * 4096 + 5 * 4096)) ] || fail "$written bytes were written"
# 0.5 % in digests, and the zeroes of the source, which are read where they are no hole there.
[ "$read" -le $((size / 200 + 8 * 1048576)) ] || fail "$read bytes were read"

serve
has_to_exit 0 nbdmirror copy "$tmp/disk" "${uri[dst]}" --sync compare
stop dst TERM
[ "$(moved write)" = 0 ] || fail "the second time $(moved write) bytes were written"

# ---- without digests it is read, and that is told ----

start_dest plain file "$size"
cp "$tmp/disk" "$tmp/plain.img"
poke 100 1
has_to_exit 0 nbdmirror copy "$tmp/dst" "${uri[plain]}" --sync compare
grep -q 'serves no digests.*it is read' "$tmp/err" || fail "it is not told that it is read"
equal "$tmp/dst" "${uri[plain]}"

# ---- live, with kills ----

cp "$tmp/disk" "$tmp/dst"
poke 12345678 100000
serve
start_server src "$tmp/disk"
cp "$tmp/disk" "$tmp/shadow"
start_guest guest "${uri[src]}" --shadow "$tmp/shadow" --rate 300 --seconds 100
attached () { [ "$(status_of "${control[src]}" worker)" = attached ]; }
resume=
for _ in 1 2 3; do
  spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --sync compare --bandwidth 20M \
    $resume
  wait_for 20 attached
  resume=--resume
  sleep "0.$((RANDOM % 8 + 1))"
  kill -KILL "${pid[mirror]}"
  wait_exit mirror 10
done
has_to_exit 0 nbdmirror mirror "${control[src]}" "${uri[dst]}" --sync compare --resume \
  --quarantine-grace 200ms --on-ready complete
stop guest INT
equal "$tmp/disk" "${uri[dst]}"
