#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that thin stays thin: a 1 TiB disk with 100 MiB of data is mirrored within seconds, to a
# sparse file, to nbdkit memory and to qcow2, and zeroes that were allocated at the source do not
# become data, though their room stays allocated (sparse.sh).
. "$(dirname "$0")/lib.sh"
measures_times
long_test

truncate -s 1T "$tmp/disk"
for at in 0 300000 1048551; do # MiB; the last one is at the end
  dd if=/dev/urandom of="$tmp/disk" bs=1M count=25 seek=$at conv=notrunc status=none
done
dd if=/dev/zero of="$tmp/disk" bs=1M count=25 seek=500000 conv=notrunc status=none \
  # allocated zeroes
sync "$tmp/disk"

mirror_to () {
  local kind=$1 start=$SECONDS sent
  start_server "src$kind" "$tmp/disk"
  start_dest "dst$kind" "$kind" 1T
  has_to_exit 0 nbdmirror mirror "${control[src$kind]}" "${uri[dst$kind]}" --on-ready complete \
    --report "$tmp/report"
  within $((SECONDS - start)) 45 "$kind: it took $((SECONDS - start)) s"
  sent=$(field sent-bytes <"$tmp/report")
  [ "$sent" -ge 70000000 ] && [ "$sent" -le 80000000 ] ||
    fail "$kind: sent $sent bytes for 75 MiB of data"
  equal_data "${uri[dst$kind]}"
  stop "src$kind"
  rm -f "${control[src$kind]}.fence"
}

# The places with data, and places between them: the whole terabyte would take too long to read.
equal_data () {
  "$python" - "$tmp/disk" "$1" <<'PY' || fail "the copy differs"
import nbd, os, sys
M = 1 << 20
f = os.open(sys.argv[1], os.O_RDONLY)
h = nbd.NBD()
h.connect_uri(sys.argv[2])
places = [m + i for m in (0, 300000, 500000, 1048551) for i in range(-2, 27)]
places += [100000, 700000, 1048575]
for m in places:
    if 0 <= m < 1048576:
        assert bytes(h.pread(M, m * M)) == os.pread(f, M, m * M), m
h.shutdown()
PY
  has_to_exit 0 nbdmirror verify "$tmp/disk" "$1"
}

mirror_to file
used=$(($(stat -c %b "$tmp/dstfile.img") * 512))
[ "$used" -le 115000000 ] || fail "the destination file takes $used bytes"
mirror_to memory
rss=$(awk '/VmRSS/ { print $2 }' "/proc/${pid[dstmemory]}/status")
[ "$rss" -le 150000 ] || fail "the memory server takes $rss KiB"
if command -v qemu-nbd >/dev/null; then
  mirror_to qcow2
  used=$(($(stat -c %b "$tmp/dstqcow2.qcow2") * 512))
  [ "$used" -le 200000000 ] || fail "the qcow2 file takes $used bytes"
fi
