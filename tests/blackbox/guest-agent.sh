#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that nbdmirror-guest-agent freezes a guest within a limit, that a freeze which fails, hangs
# or is interrupted is followed by a thaw, and that a backup between the two is guest-frozen.  The
# guest's agent is a stand-in with qemu-ga's protocol: the real one would freeze this machine.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-nbd
proves_nothing_under thread

ga=$builddir/nbdmirror-guest-agent
for wrong in '' "freeze" "melt $tmp/s" "freeze $tmp/s 0" "thaw $tmp/s 1x"; do
  # shellcheck disable=SC2086
  has_to_exit 2 "$ga" $wrong
done
has_to_exit 1 "$ga" thaw "$tmp/nobody" 1
grep -q 'not thawed: .*No such file' "$tmp/err" || fail "wrong reason: $(cat "$tmp/err")"

# agent NAME [hang|silent]
agent () {
  spawn "$1" "$python" "$srcdir/tests/blackbox/guest-agent-stand-in.py" "$tmp/$1.s" "$tmp/$1.did" \
    ${2:+"$2"}
  wait_for_socket "$tmp/$1.s" "$1"
}
did () { paste -sd' ' "$tmp/$1.did"; }
agent good
has_to_exit 0 "$ga" freeze "$tmp/good.s"
has_to_exit 0 "$ga" thaw "$tmp/good.s"
has_to_exit 0 "$ga" thaw "$tmp/good.s"
[ "$(did good)" = 'freeze thaw thaw' ] || fail "good: $(did good)"

agent hangs hang
has_to_exit 1 "$ga" freeze "$tmp/hangs.s" 1
grep -q 'does not answer in time' "$tmp/err" || fail "wrong reason: $(cat "$tmp/err")"
[ "$(did hangs)" = 'freeze thaw' ] || fail "a freeze that hangs: $(did hangs)"
spawn freeze "$ga" freeze "$tmp/hangs.s" 100
twice () { [ "$(did hangs)" = 'freeze thaw freeze' ]; }
wait_for 10 twice
stop freeze
[ "$status" = 1 ] || fail "interrupted: $status"
[ "$(did hangs)" = 'freeze thaw freeze thaw' ] || fail "interrupted: $(did hangs)"

# A thaw that was stopped between two tries, until after its end, still ends.
agent silent silent
spawn thaw "$ga" thaw "$tmp/silent.s" 1
hung_up () { grep -qs hung-up "$tmp/silent.did"; }
wait_for 10 hung_up
sigstop "${pid[thaw]}"
sleep 1.6
kill -CONT "${pid[thaw]}"
wait_exit thaw 10
[ "$status" = 1 ] || fail "a thaw that was stopped: $status"

# In a backup.
random_disk "$tmp/disk" 4M
start_server src "$tmp/disk"
: >"$tmp/good.did"
backup () { # backup AGENT SECONDS
  has_to_exit 0 nbdmirror backup "${control[src]}" "$tmp/r" --json \
    --before-hold-exec "'$ga' freeze '$tmp/$1.s' $2" --after-release-exec "'$ga' thaw '$tmp/$1.s'"
}
backup good 20
[ "$(did good)" = 'freeze thaw' ] || fail "backup: $(did good)"
[ "$(field consistency <"$tmp/out")" = guest-frozen ] || fail "$(cat "$tmp/out")"
: >"$tmp/hangs.did"
backup hangs 1
[ "$(did hangs)" = 'freeze thaw thaw' ] || fail "backup: $(did hangs)"
[ "$(field consistency <"$tmp/out")" = crash-consistent ] || fail "$(cat "$tmp/out")"
