#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a destination whose flush is slow for a while only delays the hand-over: as long as a
# flush takes longer than max-downtime the job is not ready, and once it is fast again an idle disk
# becomes ready by itself.  (The time of a flush that was slow once used to be believed for ever.)
# Where everything was copied before the first flush, nothing is ready before that has ended (R9).
. "$(dirname "$0")/lib.sh"

random_disk "$tmp/disk" 16M
touch "$tmp/slow"
start_server src "$tmp/disk"
start_eval dst 16M : "if [ -e $tmp/slow ]; then sleep 0.7; fi"

copied () {
  [ "$(status_of "${control[src]}" dirty-bytes)" = 0 ] &&
    [ "$(status_of "${control[src]}" claimed-bytes)" = 0 ]
}
spawn first nbdmirror mirror "${control[src]}" "${uri[dst]}"
wait_for 20 copied
! grep -q ^ready "$tmp/first.log" || fail "ready before the first flush: $(cat "$tmp/first.log")"
nbdmirror cancel "${control[src]}"
wait_exit first 10

spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" --on-ready complete --bandwidth 4M
wait_for 20 copied
sleep 2
[ "$(status_of "${control[src]}" state)" = copying ] || fail "ready although a flush takes 700 ms"
rm "$tmp/slow"
ends_well mirror 15
equal "$tmp/disk" "$tmp/dst.img"
