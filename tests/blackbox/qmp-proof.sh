#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that the worker of a disk which QEMU has open by itself tells how it stands while it proves
# the base of its destination, which is a plain copy; and that it can be cancelled meanwhile.
. "$(dirname "$0")/lib.sh"
proves_nothing_under address
proves_nothing_under thread
need qemu-system-x86_64

head -c 64M /dev/zero | tr '\0' x >"$tmp/base"
cp "$tmp/base" "$tmp/disk"
cp "$tmp/base" "$tmp/copy"
printf other | dd of="$tmp/disk" bs=1 seek=5000000 conv=notrunc status=none
# One request for the digests of all 64 MiB takes 256 reads, which is 8 s.
server_paths dst
spawn dst "${server_env[@]}" nbdkit -f -U "${socket[dst]}" --filter="$NBDMIRROR_DIGEST_FILTER" \
  --filter=delay file "$tmp/copy" rdelay=30ms
wait_for_socket "${socket[dst]}" dst
spawn qemu qemu-system-x86_64 -M q35 -accel tcg -m 64 -S -nodefaults -display none \
  -chardev "socket,path=$tmp/qmp,server=on,wait=off,id=c" -mon chardev=c,mode=control \
  -blockdev "driver=file,node-name=file,filename=$tmp/disk" \
  -blockdev driver=raw,node-name=disk,file=file -device virtio-blk-pci,drive=disk
wait_for_socket "$tmp/qmp" qemu

mirror=(mirror "qmp:$tmp/qmp/disk" "${uri[dst]}" --sync base --base "$tmp/base" --on-ready complete)
answers () { timeout 3 "$NBDMIRROR" status "qmp:$tmp/qmp/disk" >"$tmp/answer" 2>&1; }

# What is refused before the job begins says why.
has_to_exit 1 nbdmirror mirror "qmp:$tmp/qmp/nosuch" "${uri[dst]}"
grep -q nosuch "$tmp/err" || fail "no such node: $(cat "$tmp/err")"

spawn first nbdmirror "${mirror[@]}"
wait_for 20 answers
grep -q "state *copying" "$tmp/answer" || fail "it answers: $(cat "$tmp/answer")"
told () { [ "$(status_of "qmp:$tmp/qmp/disk" target)" = "${uri[dst]}" ]; }
wait_for 10 told # migrate asks for it
nbdmirror cancel "qmp:$tmp/qmp/disk"
wait_exit first 20
[ "$status" = 6 ] || fail "cancel: exit status $status: $(cat "$tmp/first.log")"
! grep -q " 100 %\|pass" "$tmp/first.log" || fail "the proof went on: $(cat "$tmp/first.log")"

spawn second nbdmirror "${mirror[@]}"
wait_for 20 answers
kill -USR1 "${pid[second]}" # to hand over, which it does as soon as it can
wait_exit second 60
[ "$status" = 0 ] || fail "exit status $status: $(cat "$tmp/second.log")"
cmp "$tmp/disk" "$tmp/copy" || fail "the copy is not equal"
