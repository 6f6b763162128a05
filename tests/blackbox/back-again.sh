#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a disk that was handed over goes back with little traffic: `--sync compare` to the old
# source, which is served by `receive --resume`, and after a rollback to the old destination, which
# any server serves, sends what was changed since, and nothing else.
. "$(dirname "$0")/lib.sh"
need qemu-io

size=$((128 * 1048576 + 512))
at_a=$tmp/a.img at_b=$tmp/b.img
head -c $size /dev/urandom >"$at_a"
sent () { echo $(($(field sent-bytes <"$tmp/report") + $(field zero-bytes <"$tmp/report"))); }

# change URI NUMBER: a guest's writes and zeroes, 1,280 KiB in all, other ones for each NUMBER.
changed=$((1280 * 1024))
change () {
  qemu-io -f raw -c "write -P $2 3M 512k" -c "write -P $2 70000k 256k" \
    -c "write -z $((90 + $2))M 512k" -c flush "$1" >"$tmp/io.log"
}

# moves FROM DEST LIMIT OPTIONS...: it is handed over, and at most LIMIT bytes were sent.
moves () {
  local from=$1 dest=$2 limit=$3; shift 3
  has_to_exit 0 nbdmirror mirror "$from" "$dest" --on-ready complete --report "$tmp/report" "$@"
  [ "$(sent)" -le "$limit" ] || fail "$(sent) bytes were sent, and at most $limit had to be"
}

# There.
start_server a "$at_a"
start_receive to-b "$at_b" --size $size
moves "${control[a]}" "${uri[to-b]}" $size
stop to-b
stop a

# Back: the guest writes before and while it is mirrored.
start_server b "$at_b"
change "${uri[b]}" 1
start_receive to-a "$at_a" --resume
start_guest guest "${uri[b]}" --rate 20 --to "$(bytes 2M)" --seconds 60
moves "${control[b]}" "${uri[to-a]}" $((changed + (8 << 20))) --sync compare
wait_exit guest 10
[ "$status" = 0 ] || fail "the guest saw an error"
[ "$(field skipped-bytes <"$tmp/report")" -ge $((size - changed - (4 << 20))) ] ||
  fail "only $(field skipped-bytes <"$tmp/report") bytes were skipped"
equal "${uri[b]}" "${guest_uri[to-a]}"
stop to-a

# A rollback, and once more to what the guest at B has not used: only what it wrote since is sent.
roll_back "${control[b]}"
change "${uri[b]}" 2
start_server front "$at_a"      # any server will do
moves "${control[b]}" "${uri[front]}" $((3 * changed)) --sync compare
equal "${uri[b]}" "${uri[front]}"
