#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that `nbdmirror complete` hands over all disks or none: with stand-ins for the filters that
# refuse, hang, die or lose their lease in the middle, the word never says "commit", every disk is
# released, and the message names the disk; and once it says "commit", a lost connection changes
# nothing.
. "$(dirname "$0")/lib.sh"

# fakes MODE...: one stand-in for each mode; -> controls
fakes () {
  local i=0 mode
  controls=()
  for mode; do
    i=$((i + 1))
    rm -f "$tmp/c$i"
    spawn "f$i" "$python" "$srcdir/tests/blackbox/fake-filter.py" "$tmp/c$i" "$tmp/f$i.commands" \
        "$mode"
    wait_for_socket "$tmp/c$i" "f$i"
    controls+=("$tmp/c$i")
  done
}
no_fakes () {
  local i
  for i in 1 2 3; do
    [ -n "${pid[f$i]:-}" ] || continue
    kill "${pid[f$i]}"
    wait "${pid[f$i]}" 2>/dev/null || :
    unset "pid[f$i]"
  done
}
# said N COMMAND WORD: did stand-in N get COMMAND while the decision word was WORD?
said () { grep -q "^$2 $3 " "$tmp/f$1.commands"; }
heard_of () { grep -q "^$2 " "$tmp/f$1.commands"; }

# Three disks, all well.
fakes ok ok ok
has_to_exit 0 nbdmirror complete "${controls[@]}"
for i in 1 2 3; do
  said $i mirror-prepare 0 || fail "disk $i was not armed while undecided"
  said $i mirror-prepare-now 0 || fail "disk $i was not prepared while undecided"
  said $i job-finalize 1 || fail "disk $i was not finalized after the commit"
  ! heard_of $i mirror-release || fail "disk $i was released"
  grep -q "^$tmp/c$i: handed over, pause 3.2 ms" "$tmp/out" || fail "no pause for disk $i"
  # the default lease is twice max-downtime, and 10 ms for each other disk
  grep -q '"lease-ms": 720, .*"waiters": "error"' "$tmp/f$i.commands" || fail "wrong arguments"
done
token=$(sed -n 's/^rollback token: //p' "$tmp/out")
[[ $token =~ ^[0-9a-f]{32}$ ]] || fail "token '$token'"
[ "$(cat "$tmp"/f?.commands | grep -c "\"rollback-token\": \"$token\"")" = 3 ] ||
  fail "the disks did not get the same token"
no_fakes

# Options, and JSON.
fakes ok ok
has_to_exit 0 nbdmirror complete --json --lease 5s --waiters keep --rollback-token my.token \
    "${controls[@]}"
[ "$(field committed <"$tmp/out")" = true ] || fail "JSON does not say committed"
[ "$(field rollback-token <"$tmp/out")" = my.token ] || fail "JSON has another token"
grep -q '"lease-ms": 5000, "rollback-token": "my.token", "waiters": "keep"' "$tmp/f2.commands" ||
  fail "the options were not passed on"
no_fakes

# Any failure before the commit: nothing is handed over, everything is released.
for mode in refuse close lease hang late leave; do
  fakes ok "$mode" ok
  limit=5s
  [ "$mode" != hang ] || limit=1s
  has_to_exit 1 nbdmirror complete "${controls[@]}" --timeout $limit
  for i in 1 2 3; do
    ! heard_of $i job-finalize || fail "$mode: disk $i was finalized"
    said $i mirror-release 2 || fail "$mode: disk $i was not released with the word at abort"
  done
  case $mode in
    lease) grep -q 'lease of 720 ms ended' "$tmp/err" || fail "$mode: reason not given" ;;
    late) grep -q '720 ms (the rest took too long)' "$tmp/err" || fail "$mode: reason not given" ;;
    *) grep -q "$tmp/c2" "$tmp/err" || fail "$mode: the message does not name the disk" ;;
  esac
  # No guest is held before all disks are armed.
  case $mode in
    refuse | close | hang)
      ! heard_of 1 mirror-prepare-now || fail "$mode: disk 1 was held for nothing" ;;
  esac
  ! grep -q 'rollback token' "$tmp/out" || fail "$mode: a token was printed"
  no_fakes
done

# The time limit counts while the guests are held, though the lease is longer.
fakes ok mute
spawn complete nbdmirror complete "${controls[@]}" --timeout 2s --lease 10min
wait_exit complete 60
[ "$status" = 1 ] || fail "mute: exit status $status"
grep -q "$tmp/c2: not prepared within 2000 ms" "$tmp/complete.log" ||
    fail "mute: reason not given: $(cat "$tmp/complete.log")"
said 1 mirror-release 2 || fail "mute: disk 1 was not released with the word at abort"
no_fakes

# A disk that is not ready is found before any guest is held.
fakes ok copying
has_to_exit 1 nbdmirror complete "${controls[@]}"
grep -q "$tmp/c2: not ready: the state is 'copying'" "$tmp/err" || fail "not ready: no reason"
! heard_of 1 mirror-prepare || fail "disk 1 was held though disk 2 was not ready"
has_to_exit 1 nbdmirror complete "${controls[0]}" "$tmp/nobody"
grep -q "$tmp/nobody" "$tmp/err" || fail "the missing socket is not named"
! heard_of 1 mirror-prepare || fail "disk 1 was held though disk 2 was not there"
no_fakes

# After the commit: a connection lost at finalize is made anew ...
fakes ok drop
has_to_exit 0 nbdmirror complete "${controls[@]}"
[ "$(grep -c '^job-finalize 1 ' "$tmp/f2.commands")" = 2 ] || fail "finalize was not repeated"
no_fakes
# ... and one that stays deaf is reported, but the hand-off holds and is not taken back.
fakes ok deaf
has_to_exit 1 nbdmirror complete "${controls[@]}"
grep -q "committed, but not every filter confirmed it: $tmp/c2" "$tmp/err" ||
    fail "deaf: wrong message"
grep -q '^rollback token: ' "$tmp/out" || fail "deaf: the token was not printed"
for i in 1 2; do
  ! heard_of $i mirror-release || fail "deaf: disk $i was released after the commit"
done
no_fakes
