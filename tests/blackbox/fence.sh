#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves R10: after a hand-over the source refuses mutations with EPERM and still reads, also after
# its server was killed and started again; only a rollback with the right token, and the word that
# the destination is stopped, opens it; then a new job runs.
. "$(dirname "$0")/lib.sh"

# try_write URI: write, zero and trim one block each.  Prints "open", or "EPERM" if all were refused
# so and nothing changed; anything else is an error.
try_write () {
  "$python" - "$1" <<'PY'
import errno, nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
before = h.pread(4096, 8192)
refused = 0
for op in (lambda: h.pwrite(b"w" * 4096, 8192), lambda: h.zero(4096, 8192),
           lambda: h.trim(4096, 8192)):
    try:
        op()
    except nbd.Error as e:
        assert e.errnum == errno.EPERM, e
        refused += 1
if refused == 3:
    assert h.pread(4096, 8192) == before
    print("EPERM")
else:
    assert refused == 0
    h.pwrite(before, 8192)
    print("open")
h.shutdown()
PY
}

random_disk "$tmp/disk" 32M
start_server src "$tmp/disk"
start_dest dst file 32M
[ "$(try_write "${uri[src]}")" = open ] || fail "the disk is not writable before the job"

spawn worker nbdmirror mirror "${control[src]}" "${uri[dst]}"
wait_state "${control[src]}" ready 30
has_to_exit 7 nbdmirror rollback "${control[src]}" --token none --destination-stopped
has_to_exit 0 nbdmirror complete "${control[src]}" --json
token=$(field rollback-token <"$tmp/out")
[ -n "$token" ] || fail "complete told no rollback token"
ends_well worker 10

check_fenced () {
  [ "$(try_write "${uri[src]}")" = EPERM ] || fail "$1: the source takes writes"
  [ "$(status_of "${control[src]}" gate)" = fenced ] || fail "$1: the gate is not fenced"
  [ "$(status_of "${control[src]}" state)" = completed ] || fail "$1: the state is not completed"
  [ "$(status_of "${control[src]}" rollback-token)" = "$token" ] || fail "$1: another token"
  has_to_exit 7 nbdmirror mirror "${control[src]}" "${uri[dst]}"
  grep -q 'rollback' "$tmp/err" || fail "$1: mirror does not say how to go on"
  equal "${uri[src]}" "${uri[dst]}"
}
check_fenced "after complete"
[ -s "${control[src]}.fence" ] || fail "no fence record beside the control socket"

# complete once more: refused, and nothing changes.
has_to_exit 1 nbdmirror complete "${control[src]}"
check_fenced "after a second complete"

stop src KILL
start_server src "$tmp/disk"
check_fenced "after kill -9 and restart"
stop src
start_server src "$tmp/disk"
check_fenced "after a clean restart"

has_to_exit 7 nbdmirror rollback "${control[src]}" --token "${token}0" --destination-stopped
has_to_exit 2 nbdmirror rollback "${control[src]}" --token "$token"
check_fenced "after refused rollbacks"

has_to_exit 0 nbdmirror rollback "${control[src]}" --token "$token" --destination-stopped
[ "$(try_write "${uri[src]}")" = open ] || fail "the disk is not writable after the rollback"
[ ! -e "${control[src]}.fence" ] || fail "the fence record was left behind"
has_to_exit 7 nbdmirror rollback "${control[src]}" --token "$token" --destination-stopped

# It holds after a restart, and a new job runs.
stop src
start_server src "$tmp/disk"
[ "$(try_write "${uri[src]}")" = open ] || fail "the disk is fenced again after a restart"
has_to_exit 0 nbdmirror mirror "${control[src]}" "${uri[dst]}" --on-ready complete
[ "$(try_write "${uri[src]}")" = EPERM ] || fail "the second job did not fence"

# A fence record that cannot be read counts as one.
stop src
printf 'garbage' >"${control[src]}.fence"
start_server src "$tmp/disk"
[ "$(try_write "${uri[src]}")" = EPERM ] || fail "a damaged fence record opened the disk"
