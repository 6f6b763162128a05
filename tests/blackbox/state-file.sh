#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a mirror job survives its server with mirror-state=: killed with its worker, ended
# cleanly, found in another boot, and found with a disk that was changed.  Each time the status
# tells
# how it was recovered, `mirror --resume` goes on, and in the end the destination is equal.
. "$(dirname "$0")/lib.sh"

size=64M
random_disk "$tmp/disk" $size
serve () {
  server_paths src
  rm -f "${socket[src]}" "${control[src]}"
  spawn src "${nbdmirror_prefix[@]}" "${server_env[@]}" nbdkit -f -U "${socket[src]}" \
    --filter="$NBDMIRROR_FILTER" file "$tmp/disk" "mirror-control=${control[src]}" \
    "mirror-uri=${uri[src]}" "mirror-direct=$tmp/disk" "mirror-state=$state" \
    mirror-state-volatile=yes "$@"
  wait_for_socket "${socket[src]}" src
  wait_for_socket "${control[src]}" src
}
state=$tmp/state
status_is () { [ "$(status_of "${control[src]}" "$1")" = "$2" ]; }

# recovered_as HOW WHEN
recovered_as () {
  status_is state-recovery "$1" ||
    fail "$2: recovered as $(status_of "${control[src]}" state-recovery), not as $1"
}

# write_blocks OFFSET COUNT: a guest writes COUNT blocks of 4 KiB from OFFSET on, without a flush.
write_blocks () {
  set -- "$(bytes "$1")" "$2"
  "$python" - "${uri[src]}" "$@" <<'PY'
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for i in range(int(sys.argv[3])):
    h.pwrite(os.urandom(4096), int(sys.argv[2]) + 4096 * i)
h.shutdown()
PY
}

# sent SINCE: what the job has sent since then.
sent () { echo $(($(status_of "${control[src]}" sent-bytes) - $1)); }

start_mirror () {
  spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" "$@"
  wait_state "${control[src]}" ready 40
  wait_for 20 status_is dirty-bytes 0
  wait_for 20 status_is claimed-bytes 0
}

start_dest dst file $size
serve
start_mirror
sleep 2.5                       # two rounds: what was copied is no longer marked in the file

# 1: server and worker are killed, in this boot.
write_blocks 8M 3
sigstop "${pid[mirror]}"
write_blocks 40M 5
kill -KILL "${pid[mirror]}" "${pid[src]}"
wait "${pid[mirror]}" "${pid[src]}" 2>/dev/null || :
serve
status_is state detached || fail "after kill -9 the job is not detached"
recovered_as exact "after kill -9"
recovered=$(status_of "${control[src]}" state-recovered-bytes)
[ "$recovered" -ge 20480 ] && [ "$recovered" -le 1048576 ] || fail "$recovered bytes were recovered"
before=$(status_of "${control[src]}" sent-bytes)
start_mirror --resume
[ "$(sent "$before")" -le $((recovered * 2)) ] || fail "$(sent "$before") sent for $recovered"

# 2: a clean end, while the worker is away.
kill -KILL "${pid[mirror]}"
wait "${pid[mirror]}" 2>/dev/null || :
write_blocks 20M 7
stop src
serve
recovered_as clean "after SIGTERM"
recovered=$(status_of "${control[src]}" state-recovered-bytes)
[ "$recovered" -ge 28672 ] && [ "$recovered" -le 1048576 ] || fail "clean: $recovered bytes"
start_mirror --resume

# 3: killed, and another boot: the extents that were hot are dirty.
write_blocks 50M 2
kill -KILL "${pid[mirror]}" "${pid[src]}"
wait "${pid[mirror]}" "${pid[src]}" 2>/dev/null || :
"$python" "$srcdir/tests/blackbox/other-boot.py" "$state"
serve
recovered_as extents "after a boot"
recovered=$(status_of "${control[src]}" state-recovered-bytes)
[ "$recovered" -ge 4194304 ] || fail "extents: $recovered bytes"
start_mirror --resume

# 4: the disk was changed while no server ran.
kill -TERM "${pid[mirror]}"
wait_exit mirror 20
stop src
printf x | dd of="$tmp/disk" bs=1 seek=33333 conv=notrunc status=none
serve
recovered_as everything "changed"
grep -q 'changed while it was not tracked' "$tmp/src.log" || fail "a changed disk is not told"
spawn second "${nbdmirror_prefix[@]}" "${server_env[@]}" nbdkit -f -U "$tmp/second" \
  --filter="$NBDMIRROR_FILTER" file "$tmp/disk" \
  "mirror-control=$tmp/second.control" "mirror-state=$state" mirror-state-volatile=yes
wait_exit second 20
grep -q 'another server uses it' "$tmp/second.log" || fail "two servers have one state"
start_mirror --resume
complete_soon "${control[src]}"
wait_exit mirror 20
equal "$tmp/disk" "${uri[dst]}"
stop src
