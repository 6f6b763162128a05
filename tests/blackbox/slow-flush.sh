#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a destination whose flush is slow for a while only delays the hand-over: as long as a flush takes
# longer than max-downtime the job is not ready, and once it is fast again an idle disk becomes
# ready by itself.  (The time of a flush that was slow once used to be believed for ever.)
. "$(dirname "$0")/lib.sh"
need dd

truncate -s 16M "$tmp/copy"
random_disk "$tmp/disk" 16M
touch "$tmp/slow"
start_server src "$tmp/disk"
server_paths dst
# shellcheck disable=SC2016
spawn dst nbdkit -f -U "${socket[dst]}" eval \
  get_size='echo 16M' \
  pread='dd if='"$tmp"'/copy skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none' \
  pwrite='dd of='"$tmp"'/copy seek=$4 conv=notrunc oflag=seek_bytes status=none' \
  can_write='exit 0' can_flush='exit 0' \
  flush='if [ -e '"$tmp"'/slow ]; then sleep 0.7; fi'
wait_for_socket "${socket[dst]}" dst

spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --on-ready complete --bandwidth 4M
copied () {
  [ "$(status_of "${control[src]}" dirty-bytes)" = 0 ] &&
    [ "$(status_of "${control[src]}" claimed-bytes)" = 0 ]
}
wait_for 20 copied
sleep 2
[ "$(status_of "${control[src]}" state)" = copying ] || fail "ready although a flush takes 700 ms"
rm "$tmp/slow"
wait_exit mirror 15
[ "$status" = 0 ] || fail "mirror ended with $status"
equal "$tmp/disk" "$tmp/copy"
