#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that nothing is forgotten where what is below the filter loses unflushed writes when it is
# killed: nbdkit's cache filter keeps them in memory until a flush.  The disk goes back to what it
# held at the last flush, and the destination has what the worker has copied since.  A resumed job,
# in this boot and in another one, and an incremental mirror since a checkpoint make them equal.
. "$(dirname "$0")/lib.sh"
if [ "${NBDMIRROR_LONG:-0}" = 0 ]; then
  proves_nothing_under address
  proves_nothing_under thread
fi

size=16M
random_disk "$tmp/disk" $size
serve () {
  server_paths src
  rm -f "${socket[src]}" "${control[src]}"
  spawn src "${nbdmirror_prefix[@]}" "${server_env[@]}" nbdkit -f -U "${socket[src]}" \
    --filter="$NBDMIRROR_FILTER" --filter=cache file "$tmp/disk" \
    "mirror-control=${control[src]}" "mirror-uri=${uri[src]}" "mirror-state=$tmp/state" \
    mirror-state-volatile=yes
  wait_for_socket "${socket[src]}" src
  wait_for_socket "${control[src]}" src
}
killed () {
  kill -KILL "${pid[src]}" "${pid[mirror]-${pid[src]}}"
  wait "${pid[src]}" "${pid[mirror]-}" 2>/dev/null || :
  unset 'pid[mirror]'
}
# change MEBIBYTE: a guest writes three blocks.
change () {
  "$python" -c '
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(os.urandom(3 * 4096), int(sys.argv[2]) << 20)
h.shutdown()' "${uri[src]}" "$1"
}
flush () {
  "$python" -c '
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.flush()
h.shutdown()' "${uri[src]}"
}
status_is () { [ "$(status_of "${control[src]}" "$1")" = "$2" ]; }
# noted BYTES: after the worker had sent so many the server has looked at what it may forget.
noted () {
  nbdmirror state "$tmp/state" --json | "$python" -c '
import json, sys
note = json.load(sys.stdin)["note"]
sys.exit(note is None or note["sent-bytes"] < int(sys.argv[1]))' "$1"
}
copied () {
  wait_for 20 status_is dirty-bytes 0
  wait_for 20 status_is claimed-bytes 0
}
settled () {
  copied
  wait_for 20 noted "$(status_of "${control[src]}" sent-bytes)"
}
start_mirror () {
  rm -f "$tmp/mirror.log"
  spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" "$@"
  wait_for 40 grep -q '^ready' "$tmp/mirror.log"
}
end_mirror () {
  nbdmirror cancel "${control[src]}"
  wait_exit mirror 10
  unset 'pid[mirror]'
}

# A flush counts from the next look on, so that one may not be enough.
flushed () { flush && noted "$1"; }

ways=exact
[ "${NBDMIRROR_LONG:-0}" = 0 ] || ways="exact extents"
start_dest dst file $size
serve
nbdmirror checkpoint add "${control[src]}" zero
start_mirror
for how in $ways; do
  change 4
  copied
  wait_for 20 flushed "$(status_of "${control[src]}" sent-bytes)"
  cp "$tmp/disk" "$tmp/before"
  change 8
  settled
  killed
  cmp "$tmp/before" "$tmp/disk" || fail "nothing was lost: this test proves nothing"
  [ "$how" = exact ] || "$python" "$srcdir/tests/blackbox/other-boot.py" "$tmp/state"
  serve
  status_is state-recovery "$how" || fail "it was not recovered as '$how'"
  start_mirror --resume --quarantine-grace 100ms
  equal "${uri[src]}" "${uri[dst]}"
done

# A job that is over, and a checkpoint instead: the first one that knows what is durable.
begin_anew () {
  flush
  nbdmirror checkpoint add "${control[src]}" one
  nbdmirror checkpoint list "${control[src]}" --json | "$python" -c '
import json, sys
sys.exit(json.load(sys.stdin)[-1]["changed-bytes"] != 0)' && return
  nbdmirror checkpoint remove "${control[src]}" one
  return 1
}
end_mirror
wait_for 20 begin_anew
for how in $ways; do
  change 4
  flush
  change 12
  start_mirror --sync incremental --since one --trust-destination
  copied
  end_mirror
  killed
  [ "$how" = exact ] || "$python" "$srcdir/tests/blackbox/other-boot.py" "$tmp/state"
  serve
  start_mirror --sync incremental --since one --trust-destination
  equal "${uri[src]}" "${uri[dst]}"
  end_mirror
done
