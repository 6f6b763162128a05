#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a qemu-nbd that answers late, but does answer, is not taken for a dead one under
# `serve --format qcow2`: it is stopped (SIGSTOP) for a while in the middle of a guest's requests,
# as it is started again, and at the end, when it still has to write what it has in memory.  It is
# the same process afterwards, no request fails, and nothing is lost.  In the long form it is
# stopped for longer than each limit: one that does not begin to answer is replaced, and any other
# one is waited for.
[ "${NBDMIRROR_LONG:-0}" = 0 ] || TEST_TIMEOUT=900
. "$(dirname "$0")/lib.sh"
# A shell, which stands before qemu-nbd here, does not run with a preloaded runtime.
[ -z "$runtime" ] || skip "proves nothing more with a sanitizer"
need qemu-img qemu-nbd

size=$((32 << 20))
pause=0.5
[ "${NBDMIRROR_LONG:-0}" = 0 ] || pause=40

qemu_nbd () { child_of vm qemu-nbd; }
stopped () { grep -q '^State:.*[Tt] ' "/proc/$1/status"; }
changes () {
  od -An -v -t u8 -w64 -j 4096 "$tmp/guest.json.live" | awk '{ n += $1 } END { print n }'
}
# none_is_made: the guest waits.
none_is_made () {
  local before
  before=$(changes)
  sleep 0.2
  [ "$(changes)" = "$before" ]
}
# goes_on NAME: the guest does.
goes_on () {
  local before
  before=$(changes)
  wait_for 30 guest_changed guest $((before + 20))
  running guest || fail "$1: the guest saw an error: $(cat "$tmp/guest.json")"
}
# continue_it WHEN: it must still be there.
continue_it () { kill -CONT "$child" 2>/dev/null || fail "$1: one that was stopped was killed"; }
starts () { grep -c 'qemu-nbd runs again' "$tmp/vm.log" || :; }

# The next qemu-nbd, once only, is stopped before it begins to answer, if $tmp/slow is there.
mkdir "$tmp/bin"
cat >"$tmp/bin/qemu-nbd" <<END
#!/bin/sh
if rm "$tmp/slow" 2>/dev/null; then kill -STOP \$\$; fi
exec $(command -v qemu-nbd) "\$@"
END
chmod +x "$tmp/bin/qemu-nbd"

random_disk "$tmp/shadow" "$size"
qemu-img convert -f raw -O qcow2 -o cluster_size=4k "$tmp/shadow" "$tmp/vm.qcow2"
PATH=$tmp/bin:$PATH start_server vm "$tmp/vm.qcow2" --format qcow2
start_guest guest "${uri[vm]}" --shadow "$tmp/shadow" --rate 2000 --seconds 3600
wait_for 20 guest_changed guest 100

# ---- in the middle of the guest's requests ----

child=$(qemu_nbd)
sigstop "$child"
wait_for 10 none_is_made
sleep "$pause"
continue_it "in the middle"
goes_on "in the middle"
[ "$(qemu_nbd)" = "$child" ] || fail "one that was stopped for $pause s was replaced"

# ---- as it is started again ----

# begins_late: kill qemu-nbd, and wait until the next one is stopped.  -> $child
is_stopped () { child=$(qemu_nbd); [ -n "$child" ] && stopped "$child"; }
begins_late () {
  touch "$tmp/slow"
  kill -KILL "$child"
  wait_for 20 is_stopped
  child=$(qemu_nbd)
}
begins_late
sleep 0.5
continue_it "as it is started"
goes_on "as it is started"
[ "$(qemu_nbd)" = "$child" ] || fail "one that began late was replaced"
[ "$(starts)" = 1 ] || fail "it was started again $(starts) times"

if [ "${NBDMIRROR_LONG:-0}" != 0 ]; then
  begins_late                 # and is never continued
  late=$child
  goes_on "as another one is started"
  child=$(qemu_nbd)
  [ "$child" != "$late" ] || fail "one that never answers was not replaced"
  [ "$(starts)" = 2 ] || fail "it was started again $(starts) times, not twice"
fi

# ---- as it ends ----

# What the guest has not flushed is in the memory of qemu-nbd, which the end of nbdkit waits for.
stop guest
[ "$status" = 0 ] || fail "the guest saw an error: $(cat "$tmp/guest.json")"
note "$(cat "$tmp/guest.json")"
compare "$tmp/shadow" "${uri[vm]}" || fail "the disk is not what the guest was told"
sigstop "$child"
kill -TERM "${pid[vm]}"
sleep "$pause"
running vm || fail "the server did not wait for qemu-nbd"
continue_it "as it ends"
wait_exit vm 20
gone () { ! kill -0 "$child" 2>/dev/null; }
wait_for 10 gone
! grep -q 'left alone' "$tmp/vm.log" || fail "it was not waited for: $(cat "$tmp/vm.log")"
qemu-img check -q "$tmp/vm.qcow2" >"$tmp/check" 2>&1 || [ $? = 3 ] ||
  fail "the image is damaged: $(cat "$tmp/check")"
qemu-img compare -q -f qcow2 -F raw "$tmp/vm.qcow2" "$tmp/shadow" ||
  fail "the image is not what the guest was told"
