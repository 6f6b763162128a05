#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Proves that no acknowledged write is lost when the server is killed on the way to a hand-over.
# Killed before the disk was prepared, nothing can have been committed: the next server opens the
# gate.  Where that is not certain, since the host was restarted, it refuses writes; and
# evacuate-disk, run again, does not take a hand-over for committed that was not.

. "$(dirname "$0")/lib.sh"
[ "${VALGRIND:-0}" = 0 ] || skip "the server's process is not called nbdkit under valgrind"

evacuate () { "${nbdmirror_prefix[@]}" "${server_env[@]}" "$NBDMIRROR" evacuate-disk "$@"; }

# A server that evacuate-disk has started, which it must not, is nobody's child here.
end_server () {
  [ ! -e "$tmp/src.sock.pid" ] || kill "$(cat "$tmp/src.sock.pid")" || :
}
at_exit end_server

# kill_all CASE: do as evacuate-disk does, up to the moment when the disk is armed.  Stop the
# worker, write and flush as the guest does, and kill the server.
kill_all () {
  start_server src "$tmp/old.img"
  nbdinfo --size "${uri[src]}" >"$tmp/size" # the guest
  spawn worker nbdmirror mirror "${control[src]}" "$tmp/new.img"
  wait_state "${control[src]}" ready 20
  PYTHONPATH=$srcdir/tests/blackbox PYTHONDONTWRITEBYTECODE=1 "$python" - \
    "${control[src]}" "${socket[src]}" "$tmp/new.img" "${pid[worker]}" "${pid[src]}" <<'PY'
import os, signal, sys
import nbd
from filter_client import Client, Word
control, socket, new, worker, server = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
h = nbd.NBD()
h.connect_unix(socket)
word = Word()
client = Client(control)
assert client.call("mirror-prepare", fd=word.fd, arm=True, successor=new, lease_ms=60000,
                   rollback_token="test") == {"armed": True}
os.kill(worker, signal.SIGSTOP)
h.pwrite(b"acknowledged".ljust(512), 8192)
h.flush()
os.kill(server, signal.SIGKILL)
os.kill(worker, signal.SIGKILL)
PY
  wait_exit src 10
  wait_exit worker 10
  [ -e "${control[src]}.fence.draft" ] || fail "$1: there is no draft of a fence record"
}

check_written () {
  [ "$(status_of "${control[src]}" direct)" = "$tmp/old.img" ] || fail "$1: another disk is served"
  [ "$(status_of "${control[src]}" gate)" = open ] || fail "$1: the guest cannot write"
  [ ! -e "${control[src]}.fence.draft" ] || fail "$1: the draft was left behind"
  [ ! -e "${control[src]}.fence" ] || fail "$1: it counts as handed over"
  "$python" - "${socket[src]}" <<'PY' || fail "$1: the write is lost"
import sys
import nbd
h = nbd.NBD()
h.connect_unix(sys.argv[1])
assert h.pread(12, 8192) == b"acknowledged"
h.pwrite(bytes(512), 8192)
PY
}

random_disk "$tmp/old.img" 16M
kill_all "same boot"
start_server src "$tmp/old.img"
check_written "same boot"
stop src

# Another boot, of which the record tells.
rm "$tmp/new.img"
kill_all "other boot"
sed -i 's/\("boot-id": "\)[^"]*/\10/' "${control[src]}.fence.draft"
# Nobody can receive it before that is decided, and the message says how to decide.
has_to_exit 1 "${server_env[@]}" "$NBDMIRROR" receive "$tmp/old.img" --resume \
  --socket "${socket[src]}" --control "${control[src]}"
grep -q 'complete CONTROL --commit --token test. if it was' "$tmp/err" ||
  fail "received in doubt: $(cat "$tmp/err")"
start_server src "$tmp/old.img"
[ "$(status_of "${control[src]}" gate)" = fenced ] || fail "other boot: not fenced"
has_to_exit 1 evacuate "${control[src]}" "$tmp/new.img"
grep -q 'the guest goes on with the old disk' "$tmp/err" || fail "not said: $(cat "$tmp/err")"
check_written "other boot"
stop src

# A server that cannot record the commit, and is killed: the worker that has committed says so.
rm -f "${control[src]}".fence* "$tmp/new.img" "$tmp/mirror.log"
start_server src "$tmp/old.img"
mkdir -p "${control[src]}.fence/in-the-way"
spawn mirror nbdmirror mirror "${control[src]}" "$tmp/new.img" --on-ready complete
wait_state "${control[src]}" completed 20
kill -KILL "${pid[src]}"
wait_exit mirror 20
[ "$status" = 3 ] || fail "committed, and the server was killed: exit status $status"
token=$(sed -n 's/.*handed over (rollback token \([0-9a-f]*\)), but its server ended.*/\1/p' \
  "$tmp/mirror.log")
[ -n "$token" ] || fail "no token is told: $(cat "$tmp/mirror.log")"
rm -r "${control[src]}.fence"
wait_exit src 20
start_server src "$tmp/old.img"
has_to_exit 0 nbdmirror complete "${control[src]}" --commit --token "$token"
cmp "$tmp/old.img" "$tmp/new.img" || fail "committed, and the server was killed: the disks differ"
stop src

# The same, but the server ends in order, when the commit can be recorded: it tries once more.
rm -f "${control[src]}".fence* "$tmp/new.img"
start_server src "$tmp/old.img"
mkdir -p "${control[src]}.fence/in-the-way"
spawn mirror nbdmirror mirror "${control[src]}" "$tmp/new.img" --on-ready complete
wait_state "${control[src]}" completed 20
rm -r "${control[src]}.fence"
stop src
[ -e "${control[src]}.fence" ] || fail "a server that ended in order has not recorded the commit"
wait_exit mirror 20
