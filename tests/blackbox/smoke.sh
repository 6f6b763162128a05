#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that the parts fit together: an idle 64 MiB disk, half of it holes, is mirrored, handed
# over and equal; the source then refuses writes, still reads, and the destination stayed thin.
. "$(dirname "$0")/lib.sh"

random_disk "$tmp/disk" 64M
start_server src "$tmp/disk"
start_dest dst file 64M

nbdmirror mirror "${control[src]}" "${uri[dst]}" --on-ready complete --report "$tmp/report" \
  </dev/null >"$tmp/mirror.log" 2>&1 || fail "mirror ended with $?"

[ "$(field state <"$tmp/report")" = completed ] || fail "the report does not say completed"
[ "$(field size <"$tmp/report")" = 67108864 ] || fail "the report has another size"
[ "$(status_of "${control[src]}" gate)" = fenced ] || fail "the source is not fenced"

equal "$tmp/disk" "${uri[dst]}"
equal "${uri[src]}" "${uri[dst]}"

# One writer (R10): a write to the source must fail with EPERM now, and change nothing.
"$python" - "${uri[src]}" <<'PY' || fail "the fenced source took a write"
import errno, nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
before = h.pread(4096, 0)
try:
    h.pwrite(b"x" * 4096, 0)
except nbd.Error as e:
    assert e.errnum == errno.EPERM, e
    assert h.pread(4096, 0) == before
    h.shutdown()
    sys.exit(0)
sys.exit(1)
PY

used=$(($(stat -c %b "$tmp/dst.img") * 512))
[ "$used" -le 40000000 ] || fail "the destination takes $used bytes for 32 MiB of data"

stop src
[ "$status" = 0 ] || fail "the source server ended with $status"

# The comparison can fail: one changed byte is found, by both.
printf '\377\376' | dd of="$tmp/dst.img" bs=1 seek=5000000 conv=notrunc status=none
stop dst
! compare "$tmp/disk" "$tmp/dst.img" 2>/dev/null || fail "compare.py overlooked a changed byte"
has_to_exit 5 nbdmirror verify "$tmp/disk" "$tmp/dst.img"
