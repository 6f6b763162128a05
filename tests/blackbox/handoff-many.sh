#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that several disks, each with a guest that writes, are handed over at one instant by one
# command, or none is: with one worker stopped nothing is fenced, no guest sees an error, and a
# second try succeeds; and that `rollback` opens a disk again for its guest, with the right token
# only.
. "$(dirname "$0")/lib.sh"
need_fio_nbd

disks="a b c"
for d in $disks; do
  random_disk "$tmp/$d.disk" 32M
  start_server "$d" "$tmp/$d.disk"
  start_dest "to-$d" file 32M
  # a guest, for the whole test, that ends at the first error
  start_fio "guest-$d" "${uri[$d]}" --size=32M --rate_iops=200 --runtime=100
done
guests_run () {
  local d
  for d in $disks; do running "guest-$d" || fail "$1: the guest of $d has ended"; done
}
writes_of () { "$python" - "${uri[$1]}" <<'PY'
import errno, nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
try:
    h.pwrite(h.pread(512, 0), 0)
except nbd.Error as e:
    sys.exit("EPERM" if e.errnum == errno.EPERM else str(e))
h.shutdown()
PY
}
controls=()
for d in $disks; do controls+=("${control[$d]}"); done

for d in $disks; do
  # A pause that a busy machine is ready for as well: of three disks that are not ready one would be
  # named.
  spawn "mirror-$d" nbdmirror mirror "${control[$d]}" "${uri[to-$d]}" --max-downtime 3s \
      --policy none
done
for d in $disks; do wait_state "${control[$d]}" ready 30; done

# One worker is stopped: all or nothing means nothing.
sigstop "${pid[mirror-b]}"
has_to_exit 1 nbdmirror complete "${controls[@]}" --lease 1s --timeout 2s
grep -q "${control[b]}" "$tmp/err" ||
    fail "the message does not name the disk that was not prepared"
for d in $disks; do
  [ "$(status_of "${control[$d]}" gate)" = open ] || fail "the gate of $d is not open"
  [ ! -e "${control[$d]}.fence" ] || fail "$d left a fence record"
  writes_of "$d" || fail "$d refuses writes though nothing was handed over"
done
guests_run "after the failed hand-off"
kill -CONT "${pid[mirror-b]}"

# The same again, with all workers there.
for d in $disks; do wait_state "${control[$d]}" ready 30; done
# A long lease, and another try where a disk is just not ready: the machine may be busy.
complete_all () { nbdmirror complete "${controls[@]}" --lease 10s --json >"$tmp/out" 2>"$tmp/err"; }
wait_for 60 complete_all || fail "complete: $(cat "$tmp/err")"
[ "$(field committed <"$tmp/out")" = true ] || fail "JSON does not say committed"
token=$(field rollback-token <"$tmp/out")
"$python" - "$tmp/out" <<'PY' || fail "a pause is missing or out of range"
import json, sys
disks = json.load(open(sys.argv[1]))["disks"]
assert len(disks) == 3, disks
assert all(0 < d["downtime-ms"] < 10000 for d in disks), disks
PY
for d in $disks; do
  [ "$(status_of "${control[$d]}" gate)" = fenced ] || fail "$d is not fenced"
  [ "$(status_of "${control[$d]}" rollback-token)" = "$token" ] || fail "$d has another token"
  [ -e "${control[$d]}.fence" ] || fail "$d has no fence record"
  ! writes_of "$d" 2>"$tmp/err" || fail "$d takes writes though it was handed over"
  grep -q EPERM "$tmp/err" || fail "$d: another error than EPERM: $(cat "$tmp/err")"
  ends_well "mirror-$d" 10
  wait_exit "guest-$d" 10
  equal "$tmp/$d.disk" "${uri[to-$d]}"
done

# Back again, one of them.
has_to_exit 7 nbdmirror rollback "${control[a]}" --token "x$token" --destination-stopped
[ "$(status_of "${control[a]}" gate)" = fenced ] || fail "a wrong token opened the gate"
has_to_exit 0 nbdmirror rollback "${control[a]}" --token "$token" --destination-stopped
writes_of a || fail "the disk refuses writes after the rollback"
[ ! -e "${control[a]}.fence" ] || fail "the rollback left the fence record"
[ "$(status_of "${control[b]}" gate)" = fenced ] || fail "the rollback of a opened b"
has_to_exit 7 nbdmirror rollback "${control[a]}" --token "$token" --destination-stopped

# Servers leave no socket behind, and keep the fence.
stop b
wait_for 5 test ! -e "${socket[b]}"
[ ! -e "${control[b]}" ] || fail "the control socket was left behind"
start_server b "$tmp/b.disk"
[ "$(status_of "${control[b]}" gate)" = fenced ] || fail "b is not fenced after a restart"
[ "$(status_of "${control[b]}" rollback-token)" = "$token" ] || fail "b forgot the token"
stop b KILL
wait_for 5 test ! -e "${socket[b]}"
