#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that `checkpoint verify` finds each block that was changed and is not recorded, and nothing
# else: while a guest writes, by reading and by the digests of the copy's server, and with the state
# file of a server that is stopped.
. "$(dirname "$0")/lib.sh"
proves_nothing_under address
proves_nothing_under thread

size=$((8 * 1048576 + 512))
random_disk "$tmp/disk" $size
cp "$tmp/disk" "$tmp/copy"
start_stateful src "$tmp/disk" "$tmp/state"
nbdmirror checkpoint add "${control[src]}" one

verify () { nbdmirror checkpoint verify "${control[src]}" one "$1" --json; }
# value NAME: of the last report.
value () { field "$1" <"$tmp/out"; }

has_to_exit 1 nbdmirror checkpoint verify "${control[src]}" none "$tmp/copy"
grep -q "no checkpoint 'none'" "$tmp/err" || fail "no such checkpoint: $(cat "$tmp/err")"
has_to_exit 2 nbdmirror checkpoint verify "$tmp/state" one "$tmp/copy"
head -c 4096 "$tmp/copy" >"$tmp/short"
has_to_exit 1 verify "$tmp/short"
grep -q "the same size" "$tmp/err" || fail "another size: $(cat "$tmp/err")"

# A guest writes all the while, up to the last byte.
has_to_exit 0 verify "$tmp/copy"
[ "$(value different-bytes)" = 0 ] || fail "nothing was changed"
start_guest guest "${uri[src]}" --rate 500 --seconds 60
wait_for 20 guest_changed guest 200
start_receive copy "$tmp/copy" --resume
has_to_exit 0 verify "$tmp/copy"
has_to_exit 0 verify "${uri[copy]}"
[ "$(value different-bytes)" -gt 0 ] || fail "what the guest has changed is not seen"
stop guest
stop src
has_to_exit 0 nbdmirror checkpoint verify "$tmp/state" one "$tmp/copy" --disk "$tmp/disk"
grep -q "^good: .* all of them are recorded since 'one'" "$tmp/out" || fail "$(cat "$tmp/out")"

# The tracking misses something.
cp "$tmp/disk" "$tmp/copy2"
start_stateful src "$tmp/disk" "$tmp/state"
nbdmirror checkpoint add "${control[src]}" two
printf 'xy' | dd of="$tmp/disk" bs=1 seek=$((1048576 - 1)) conv=notrunc status=none
printf 'z' | dd of="$tmp/disk" bs=1 seek=$((size - 1)) conv=notrunc status=none
for copy in "$tmp/copy2" "${uri[copy]}"; do
  if [ "$copy" != "$tmp/copy2" ]; then
    stop copy
    cp "$tmp/copy2" "$tmp/copy"
    start_receive copy "$tmp/copy" --resume
  fi
  has_to_exit 5 nbdmirror checkpoint verify "${control[src]}" two "$copy"
  [ "$(grep -c "^not recorded" "$tmp/out")" = 2 ] || fail "$copy: $(cat "$tmp/out")"
  for missed in "8192 bytes at offset 1044480" "512 bytes at offset 8388608"; do
    grep -q "^not recorded: $missed$" "$tmp/out" || fail "$copy: $(cat "$tmp/out")"
  done
done
