#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves the main job: a disk of odd size is mirrored while fio and a checking guest change it
# (writes, zeroes and trims of odd ranges, across block borders, at the tail, over several
# connections), and is handed over; then the destination is equal byte for byte, by our verify, by
# other programs' eyes, and holds all that the guests had acknowledged.  Destinations: nbdkit file,
# nbdkit memory, qemu-nbd with qcow2.
. "$(dirname "$0")/lib.sh"
need_fio_nbd
need nbdcopy

size=$(bytes 40M+513)
[ -z "${NBDMIRROR_LONG:-}" ] || size=$(bytes 400M+513)
limit=24M

# The first 12 MiB belong to fio: two jobs that can be verified, one that trims; then 4 MiB that fio
# writes until it is refused; the rest to the guest.
fio_part () {
  local name=$1 to=$2; shift 2
  spawn "$name" fio --ioengine=nbd --uri="$to" --randrepeat=1 --iodepth=8 --rate_iops=800 \
    --name=verified --rw=randwrite --bs=4k --size=2M --offset_increment=2M --numjobs=2 \
    --verify=crc32c --do_verify=0 --time_based=0 \
    --name=trims --ioengine=nbd --uri="$to" --rw=randtrim --bs=4k --offset=4M --size=2M \
    --iodepth=8 \
    --rate_iops=400 --time_based=0
}

# mirror_to KIND EQUAL-COMMAND...
mirror_to () {
  local kind=$1; shift
  rm -f "$tmp"/src.control.fence "$tmp"/dst.*
  random_disk "$tmp/disk" "$size"
  cp --sparse=always "$tmp/disk" "$tmp/shadow"
  start_server src "$tmp/disk"
  # shellcheck disable=SC2154
  start_dest dst "$kind" "$dest_size"

  fio_part fio "${uri[src]}"
  spawn late fio --name=late --ioengine=nbd --uri="${uri[src]}" --rw=randwrite --bsrange=512-64k \
    --bs_unaligned \
    --offset=8M --size=4M --iodepth=1 --rate_iops=300 --time_based --runtime=60 --norandommap
  start_guest guest "${uri[src]}" --shadow "$tmp/shadow" --from $((12 << 20))
  spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --max-downtime 1s \
    --bandwidth "$limit" --report "$tmp/report"

  # fio ends by itself, well before; the guests write on right into the hand-over.
  ends_well fio 60 "$kind"
  wait_state "${control[src]}" ready 60
  complete_soon "${control[src]}"
  ends_well mirror 20 "$kind"
  [ "$(field state <"$tmp/report")" = completed ] || fail "$kind: the report does not say completed"
  ends_well guest 20 "$kind"
  [ "$(field fenced <"$tmp/guest.json")" = true ] ||
    fail "$kind: the guest was not refused at the end"
  [ "$(field changes <"$tmp/guest.json")" -gt 100 ] ||
    fail "$kind: the guest changed next to nothing"
  wait_exit late 20
  [ "$status" != 0 ] || fail "$kind: fio was not refused at the end"
  running src || fail "$kind: the source's server ended"

  equal "$tmp/disk" "${uri[dst]}"
  equal "${uri[src]}" "${uri[dst]}"
  fio --name=verified --ioengine=nbd --uri="${uri[dst]}" --rw=read --bs=4k --size=2M \
    --offset_increment=2M \
    --numjobs=2 --iodepth=1 --verify=crc32c --verify_fatal=1 >"$tmp/fio-verify.log" 2>&1 ||
    fail "$kind: fio's data is not at the destination"
  grep -q 'err= 0' "$tmp/fio-verify.log" || fail "$kind: fio verified nothing"
  shadow_equal $((12 << 20)) "$kind"
  "$@"
  stop src
  [ "$status" = 0 ] || fail "$kind: the source's server ended with $status"
  [ -z "${pid[dst]:-}" ] || stop dst
}

file_equal () {
  stop dst
  cmp "$tmp/disk" "$tmp/dst.img" || fail "file: cmp found a difference"
}
memory_equal () {
  nbdcopy --connections=1 --requests=1 "${uri[dst]}" "$tmp/dst.copy" ||
    fail "memory: nbdcopy failed"
  cmp "$tmp/disk" "$tmp/dst.copy" || fail "memory: cmp found a difference"
}
qcow2_equal () {
  stop dst
  qemu-img compare -f raw -F qcow2 "$tmp/disk" "$tmp/dst.qcow2" >"$tmp/qemu-img.log" 2>&1 ||
    fail "qcow2: qemu-img compare found a difference: $(cat "$tmp/qemu-img.log")"
  qemu-img check -q "$tmp/dst.qcow2" || fail "qcow2: the image is damaged"
}

dest_size=$size mirror_to file file_equal
dest_size=$size mirror_to memory memory_equal
if command -v qemu-nbd >/dev/null && command -v qemu-img >/dev/null; then
  # Larger: a whole number of sectors.
  dest_size=$(((size + 511) / 512 * 512)) mirror_to qcow2 qcow2_equal
else
  note "no qemu-nbd: that destination was not tried"
fi
