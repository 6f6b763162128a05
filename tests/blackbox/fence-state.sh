#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that the fence does not depend on the state file, nor the state file on the fence: after a
# hand-over the server is killed and started again with its state file, as if in another boot, with
# a new one, with one that was kept from before the hand-over, and with none.  Writes are refused
# each time.  After a rollback the disk is open, also in a server that is killed then, and what is
# written counts for a checkpoint.  A fence record that lies in memory is told of in the log.
. "$(dirname "$0")/lib.sh"

size=16M state=$tmp/state

# write_block MEBIBYTE: a guest writes a block.  Prints "open" or "EPERM".
write_block () {
  "$python" - "${uri[src]}" "$1" <<'PY'
import errno, nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
try:
    h.pwrite(os.urandom(4096), int(sys.argv[2]) << 20)
    print("open")
except nbd.Error as e:
    assert e.errnum == errno.EPERM, e
    print("EPERM")
h.shutdown()
PY
}
killed () {
  kill -KILL "${pid[src]}"
  wait "${pid[src]}" 2>/dev/null || :
  unset "pid[src]"
}
# again CASE [STATE]: the server is killed and started again.  The disk stays fenced.
again () {
  killed
  start_stateful src "$tmp/disk" "${2-$state}"
  [ "$(status_of "${control[src]}" gate)" = fenced ] || fail "$1: the gate is not fenced"
  [ "$(status_of "${control[src]}" state)" = completed ] || fail "$1: the job is not completed"
  [ "$(write_block 3)" = EPERM ] || fail "$1: the source takes writes"
}

random_disk "$tmp/disk" $size
start_dest dst file $size
start_stateful src "$tmp/disk" "$state"
nbdmirror checkpoint add "${control[src]}" one
[ "$(write_block 1)" = open ] || fail "the disk is not writable before the job"
cp "$state" "$tmp/old"
nbdmirror mirror "${control[src]}" "${uri[dst]}" --on-ready complete --report "$tmp/report" \
  >"$tmp/mirror.log" 2>&1 || fail "mirror: $(cat "$tmp/mirror.log")"
[ "$(write_block 2)" = EPERM ] || fail "the job did not fence"

again "killed"
again "with a new state file" "$tmp/new"
again "with an older state file" "$tmp/old"
killed
"$python" "$srcdir/tests/blackbox/other-boot.py" "$state"
start_server src "$tmp/disk"
[ "$(write_block 3)" = EPERM ] || fail "without a state file the source takes writes"
again "in another boot"
equal "$tmp/disk" "${uri[dst]}"

# The state file is that of the disk as it was, but servers without it have had the disk.  So it
# says that nothing is known; a new checkpoint is.
roll_back "${control[src]}"
[ "$(write_block 4)" = open ] || fail "the disk is not writable after the rollback"
has_to_exit 7 nbdmirror dirty-map "${control[src]}" --since one
nbdmirror checkpoint add "${control[src]}" two
[ "$(write_block 5)" = open ] || fail "the disk is not writable any more"
killed
start_stateful src "$tmp/disk" "$state"
[ "$(write_block 6)" = open ] || fail "the disk is fenced again after a rollback"
nbdmirror dirty-map "${control[src]}" --since two --json | "$python" -c '
import json, sys
dirty = [r for r in json.load(sys.stdin) if r["type"]]
for at in 5 << 20, 6 << 20:
    if not any(r["offset"] <= at < r["offset"] + r["length"] for r in dirty):
        sys.exit(f"the write at {at} is missing in {dirty}")
if sum(r["length"] for r in dirty) > 2 * 4096:
    sys.exit(f"more than what was written: {dirty}")'

# A control socket in memory: the record is not there after the next boot.
stop src
case $(stat -f -c %T /dev/shm) in tmpfs|ramfs) ;; *) exit 0 ;; esac
! grep -q "is in memory" "$tmp/src.log" || [ "$(stat -f -c %T "$tmp")" = tmpfs ] ||
  fail "a fence on a disk is said to be in memory"
memory=$(mktemp -d /dev/shm/nbdmirror-fence.XXXXXX)
remove_memory () { rm -rf "$memory"; }
at_exit remove_memory
fresh_paths src
control[src]=$memory/control
spawn src "${nbdmirror_prefix[@]}" "${server_env[@]}" "$NBDMIRROR" serve "$tmp/disk" \
  --socket "${socket[src]}" --control "${control[src]}"
wait_for_socket "${control[src]}" src
nbdmirror mirror "${control[src]}" "${uri[dst]}" --on-ready complete >"$tmp/mirror.log" 2>&1 ||
  fail "mirror: $(cat "$tmp/mirror.log")"
wait_for 5 grep -q "$memory/control.fence is in memory" "$tmp/src.log"
