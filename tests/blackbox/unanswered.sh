#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a worker which is cancelled while its server does not answer waits for the server's
# word: it says "cancelled" only of a hand-off that was released, never of one that is committed.
. "$(dirname "$0")/lib.sh"
proves_nothing_under address
[ "${VALGRIND:-0}" = 0 ] || skip "the server's process is not called nbdkit under valgrind"

is_ready () { [ "$(status_of "${control[src]}" state)" = ready ]; } # the last job was cancelled

# cancel_unanswered WORD: the disk is prepared; then the server is stopped, the decision word
# becomes WORD, the worker is cancelled, and the server goes on when the worker has asked in vain.
cancel_unanswered () {
  : >"$tmp/mirror.log"
  spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}"
  wait_for 30 is_ready
  PYTHONPATH=$srcdir/tests/blackbox PYTHONDONTWRITEBYTECODE=1 "$python" - \
    "${control[src]}" "${pid[mirror]}" "${pid[src]}" "$1" <<'PY'
import os, signal, sys, time
from filter_client import Client, Refused, Word
control, worker, server, value = sys.argv[1], *map(int, sys.argv[2:5])
client, word = Client(control), Word()
client.call("mirror-prepare", fd=word.fd, arm=True, lease_ms=60000, rollback_token="test")
client.call("mirror-prepare-now")
os.kill(server, signal.SIGSTOP)
# The signal stops a busy machine's threads some time later.
tasks = f"/proc/{server}/task/"
while any(open(f"{tasks}{t}/stat").read().rpartition(")")[2].split()[0] != "T"
          for t in os.listdir(tasks)):
    time.sleep(0.001)
if value:
    word.set(value)
os.kill(worker, signal.SIGINT)
PY
  wait_for 30 grep -q 'cannot be given up, and may be committed' "$tmp/mirror.log"
  running mirror || fail "word $1: the worker has not waited"
  kill -CONT "${pid[src]}"
  wait_exit mirror 30
}

random_disk "$tmp/disk" 8M
start_server src "$tmp/disk"
start_dest dst file 8M

cancel_unanswered 0
[ "$status" = 6 ] || fail "released: exit status $status instead of 6"
[ "$(status_of "${control[src]}" gate)" = open ] || fail "released, and the guest does not go on"

cancel_unanswered 1
[ "$status" = 0 ] || fail "committed: exit status $status instead of 0"
! grep -q 'the guest goes on' "$tmp/mirror.log" || fail "committed: the guest is said to go on"
[ "$(status_of "${control[src]}" gate)" = fenced ] || fail "committed, and not fenced"
equal "$tmp/disk" "${uri[dst]}"
