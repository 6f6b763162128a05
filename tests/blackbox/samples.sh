#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that samples ask a destination for its data without making it work much.  A qcow2 server
# goes through all layers of a chain for each piece of data that a question covers, so what begins
# with data is asked about in short questions, and a question that many samples have is asked once.
# And that all unchanged blocks are compared where the user asks for as many, also those behind a
# long part that was changed.
. "$(dirname "$0")/lib.sh"
need qemu-io

mib=$((1 << 20))
truncate -s 1G "$tmp/disk"
for at in 0 100; do
  dd if=/dev/urandom of="$tmp/disk" bs=1M seek=$at count=8 conv=notrunc status=none
done
cp --sparse=always "$tmp/disk" "$tmp/copy"
start_stateful src "$tmp/disk" "$tmp/state"
nbdmirror checkpoint add "${control[src]}" one
"$python" - "${uri[src]}" <<'EOF'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b"x" * 4096, 4096)
h.shutdown()
EOF
has_to_exit 0 nbdmirror mirror "${control[src]}" --sync incremental --since one \
  --trust-destination=64 --on-ready complete \
  [ nbdkit --filter=log file "$tmp/copy" logfile="$tmp/log" ]

"$python" - "$tmp/log" <<'EOF' || fail "$(grep ' Extents ' "$tmp/log" | head -300)"
import collections, re, sys
MIB = 1 << 20
text = open(sys.argv[1]).read()
asked = [(int(a, 16), int(n, 16)) for a, n in re.findall(
    r" Extents id=\d+ offset=(0x[0-9a-f]+|0) count=(0x[0-9a-f]+) req_one=1", text)]
print(len(asked), "questions")
assert len(asked) >= 32, "half of the samples should have asked"
for (offset, length), times in collections.Counter(asked).items():
    in_data = offset < 8 * MIB or 100 * MIB <= offset < 108 * MIB
    assert not in_data or length <= 16 * MIB, (offset // MIB, length // MIB)
    assert times <= 3, (offset, times)  # there are three rounds
EOF
cmp "$tmp/disk" "$tmp/copy" || fail "the copy is not equal"
stop src

random_disk "$tmp/small" 64M
cp "$tmp/small" "$tmp/small.copy"
start_stateful small "$tmp/small" "$tmp/small.state"
nbdmirror checkpoint add "${control[small]}" one
qemu-io -f raw -c 'write -q -P 5 0 20M' "${uri[small]}"
printf x | dd of="$tmp/small.copy" bs=1 seek=40M conv=notrunc status=none
has_to_exit 7 nbdmirror mirror "${control[small]}" --sync incremental --since one \
  --trust-destination=16384 --on-ready complete [ nbdkit file "$tmp/small.copy" ]
grep -q "does not stand at checkpoint 'one'" "$tmp/err" || fail "small: $(cat "$tmp/err")"
