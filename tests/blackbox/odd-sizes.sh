#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves rule R11: disks whose size is no multiple of a sector or block are mirrored to the last
# byte, with a guest that writes there meanwhile; a larger destination is warned about and keeps
# what lies behind the end, a smaller one is refused (exit 7) before anything is written; one that
# takes 4 KiB requests only is written in such.
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread

# begin SIZE: the source, a disk of random data and its shadow.
begin () {
  rm -f "$tmp/src.control.fence" "$tmp"/dst.*
  random_disk "$tmp/disk" "$1"
  cp --sparse=always "$tmp/disk" "$tmp/shadow"
  start_server src "$tmp/disk"
}
end () {
  stop src
  [ "$status" = 0 ] || fail "$1: the source's server ended with $status"
  stop dst
}

# mirror WHAT SIZE [GUEST-OPTIONS]: with a guest at the tail, before and after ready, to
# ${uri[dst]}.
mirror () {
  local what=$1 size=$2; shift 2
  [ "$size" = 0 ] ||
    start_guest guest "${uri[src]}" --shadow "$tmp/shadow" --connections 1 --rate 100 "$@"
  spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --report "$tmp/report" \
    --max-downtime 5s
  wait_state "${control[src]}" ready 30
  [ "$size" = 0 ] || wait_for 20 guest_changed guest 10
  complete_soon "${control[src]}"
  ends_well mirror 20 "$what"
  [ "$(field size <"$tmp/report")" = "$size" ] || fail "$what: the report has another size"
  [ "$size" = 0 ] && return
  ends_well guest 20 "$what"
  [ "$(field fenced <"$tmp/guest.json")" = true ] ||
    fail "$what: the guest was not refused at the end"
  [ "$(field changes <"$tmp/guest.json")" -gt 5 ] || fail "$what: the guest changed next to nothing"
}

# Same size at both ends.
for size in 0 1 511 513 4095 4096 4097; do
  begin "$size"
  start_dest dst file "$size"
  mirror "$size bytes" "$size"
  equal "$tmp/disk" "${uri[dst]}"
  cmp "$tmp/disk" "$tmp/dst.img" || fail "$size bytes: cmp found a difference"
  shadow_equal 0 "$size bytes"
  end "$size bytes"
done

# 4 GiB and one byte, nearly all holes: offsets beyond 32 bits, and a tail of one byte.
size=$(bytes 4G+1)
begin 4097
stop src
truncate -s "$size" "$tmp/disk" "$tmp/shadow"
start_server src "$tmp/disk"
start_dest dst file "$size"
mirror "4 GiB + 1" "$size" --from $((size - 100000))
from=$((size - 1048576))
cmp -i $from "$tmp/disk" "$tmp/dst.img" || fail "4 GiB + 1: the tail differs"
shadow_equal $from "4 GiB + 1"
cmp -n 1048576 "$tmp/disk" "$tmp/dst.img" || fail "4 GiB + 1: the beginning differs"
used=$(($(stat -c %b "$tmp/dst.img") * 512))
[ "$used" -lt 2000000 ] || fail "4 GiB + 1: the destination takes $used bytes"
if [ -n "${NBDMIRROR_LONG:-}" ]; then
  equal "$tmp/disk" "${uri[dst]}"
else
  nbdmirror verify "$tmp/disk" "${uri[dst]}" >"$tmp/verify.log" 2>&1 ||
    fail "4 GiB + 1: verify ended with $?"
fi
end "4 GiB + 1"

# A larger destination: told, and what lies behind the end stays as it is.
for size in 513 4097 1048577; do
  begin "$size"
  head -c $((size + 70000)) /dev/zero | tr '\0' '#' >"$tmp/dst.img"
  cp "$tmp/dst.img" "$tmp/before"
  start_dest dst file 0
  : >"$tmp/mirror.log"
  mirror "larger than $size" "$size"
  grep -q 'larger than the source' "$tmp/mirror.log" || fail "larger than $size: no warning"
  equal "$tmp/disk" "${uri[dst]}"
  cmp -i "$size" "$tmp/dst.img" "$tmp/before" || fail "larger than $size: wrote behind the end"
  end "larger than $size"
done

# qemu-nbd has whole sectors.
if command -v qemu-nbd >/dev/null; then
  begin 4097
  start_dest dst qcow2 4608
  mirror "qemu-nbd" 4097
  equal "$tmp/disk" "${uri[dst]}"
  end "qemu-nbd"
fi

# refused WHAT PATTERN: exit 7, the message says why, no job is left over, the guest's gate is open.
refused () {
  has_to_exit 7 timeout 30 "$NBDMIRROR" mirror "${control[src]}" "${uri[dst]}" --on-ready complete
  grep -q "$2" "$tmp/err" || fail "$1: the message does not say why: $(cat "$tmp/err")"
  [ "$(status_of "${control[src]}" state)" = idle ] ||
    [ "$(status_of "${control[src]}" state)" = cancelled ] ||
    fail "$1: a job is left over"
  [ "$(status_of "${control[src]}" gate)" = open ] || fail "$1: the gate is not open"
}

# A smaller destination: refused, and nothing written.
for size in 1 513 4097 1048577; do
  begin "$size"
  head -c $((size - 1)) /dev/zero | tr '\0' '#' >"$tmp/dst.img"
  cp "$tmp/dst.img" "$tmp/before"
  start_dest dst file 0
  refused "smaller than $size" 'too small'
  cmp "$tmp/dst.img" "$tmp/before" || fail "smaller than $size: something was written"
  end "smaller than $size"
done
if command -v qemu-nbd >/dev/null; then
  begin 4097
  start_dest dst qcow2 4096
  before=$(sha256sum <"$tmp/dst.qcow2")
  refused "smaller qemu-nbd" 'too small'
  stop dst
  [ "$(sha256sum <"$tmp/dst.qcow2")" = "$before" ] || fail "smaller qemu-nbd: something was written"
  # Nothing stands in the way of a better destination, on the same server.
  start_dest dst2 qcow2 8192
  uri[dst]=${uri[dst2]}
  mirror "after a refusal" 4097
  equal "$tmp/disk" "${uri[dst]}"
  stop src
  stop dst2
fi

# Requests of 4 KiB only, and junk behind the end, in the same block: kept.
for size in 1 4097 1048577; do
  begin "$size"
  head -c $(((size + 4095) / 4096 * 4096)) /dev/zero | tr '\0' '#' >"$tmp/dst.img"
  cp "$tmp/dst.img" "$tmp/before"
  start_fake dst --file "$tmp/dst.img" --min-block 4096 --log "$tmp/requests"
  mirror "4 KiB requests, $size" "$size"
  equal "$tmp/disk" "${uri[dst]}"
  cmp -i "$size" "$tmp/dst.img" "$tmp/before" || fail "4 KiB requests, $size: wrote behind the end"
  "$python" - "$tmp/requests" <<'PY' || fail "4 KiB requests, $size: an unaligned request was sent"
import json, sys
bad = [r for r in map(json.loads,
                      open(sys.argv[1]))
       if r["event"] == "request" and (r["offset"] | r["length"]) & 4095]
print(bad[:3]) if bad else None
sys.exit(bool(bad))
PY
  end "4 KiB requests, $size"
done

# ... which the last byte does not fit into: refused.
begin 4097
truncate -s 4097 "$tmp/dst.img"
start_fake dst --file "$tmp/dst.img" --min-block 4096
refused "4 KiB requests, odd end" 'multiples of 4096'
end "4 KiB requests, odd end"
