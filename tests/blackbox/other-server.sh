#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that nothing is written to another server that comes into the destination's place after the
# first connection was made, and that nothing is left out because of it: neither where the worker
# can see that it is another one, nor, when a job goes on, where it has to look at what the disk
# holds.  Where nothing that it holds can be compared, everything is copied again.
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread
proves_nothing_under address

size=16M
head -c "$(bytes $size)" /dev/urandom >"$tmp/disk"
start_server src "$tmp/disk"
head -c "$(bytes $size)" /dev/urandom >"$tmp/other.img"
cp "$tmp/other.img" "$tmp/other.copy"

# relay NAME OPTIONS...: from ${uri[NAME]} to the servers dst and other.
relay () {
  local name=$1; shift
  server_paths "$name"
  spawn "$name" "$python" "$srcdir/tests/blackbox/split-relay.py" "${socket[$name]}" \
    "${socket[dst]}" "${socket[other]}" "$@"
  wait_for 20 grep -q ready "$tmp/$name.log"
}
untouched () { cmp "$tmp/other.img" "$tmp/other.copy" || fail "$1: another disk was written to"; }

# What is not flushed is in quarantine once the worker is killed, and proves nothing.
flushed () { [ "$(status_of "${control[$1]}" claimed-bytes)" = 0 ]; }
settled () {
  wait_state "${control[${1:-src}]}" ready 20
  wait_for 20 flushed "${1:-src}"
}

# Its socket takes the place of the first one's.
start_dest dst file $size
start_dest other file $size
relay renamed --rename
nbdmirror copy "$tmp/disk" "${uri[renamed]}" >"$tmp/out" 2>"$tmp/err" || fail "$(cat "$tmp/err")"
untouched "another socket"
cmp "$tmp/disk" "$tmp/dst.img" || fail "another socket: the copy differs"
grep -q "admits fewer connections" "$tmp/err" || fail "nothing is told: $(cat "$tmp/err")"
stop renamed
stop other
stop dst
rm "$tmp/dst.img"

# The server that comes has the same contents, and tells it by digests: the first one has to get it.
start_dest dst file $size --filter="$NBDMIRROR_DIGEST_FILTER"
cp "$tmp/other.img" "$tmp/before"
cp "$tmp/disk" "$tmp/other.img"
start_dest other file $size --filter="$NBDMIRROR_DIGEST_FILTER"
relay digests --rename
nbdmirror copy "$tmp/disk" "${uri[digests]}" --sync compare >"$tmp/out" 2>"$tmp/err" ||
  fail "$(cat "$tmp/err")"
cmp "$tmp/disk" "$tmp/dst.img" || fail "digests of another server: the copy differs"
stop digests
stop other
stop dst
rm "$tmp/dst.img"
cp "$tmp/before" "$tmp/other.img"

# The same with the digest of a base image.  Nothing may be left out because another server has it.
start_dest dst file $size --filter="$NBDMIRROR_DIGEST_FILTER"
cp "$tmp/disk" "$tmp/other.img"
start_dest other file $size --filter="$NBDMIRROR_DIGEST_FILTER"
relay base --rename
has_to_exit 7 nbdmirror copy "$tmp/disk" "${uri[base]}" --sync base --base "$tmp/disk"
grep -q "another server answers" "$tmp/err" || fail "refused for another reason: $(cat "$tmp/err")"
stop base
stop other
rm "$tmp/other.img"
start_receive other "$tmp/other.img" --format qcow2 --size $size --backing "$tmp/disk"
relay backing --rename
has_to_exit 7 nbdmirror copy "$tmp/disk" "nbd+unix:///mirror?socket=${socket[backing]}" \
  --sync base --base "$tmp/disk"
grep -q "another server answers" "$tmp/err" || fail "refused for another reason: $(cat "$tmp/err")"
stop backing
stop other
stop dst
rm "$tmp/dst.img"
cp "$tmp/before" "$tmp/other.img"

# It says that it stands at the checkpoint.  The first one says nothing, and lacks one block.
cp "$tmp/disk" "$tmp/now"
start_stateful now "$tmp/now" "$tmp/state"
nbdmirror checkpoint add "${control[now]}" one
rm "$tmp/other.img"
start_receive other "$tmp/other.img" --size $size
spawn mirror nbdmirror mirror "${control[now]}" "${uri[other]}"
settled now
nbdmirror cancel "${control[now]}"
wait_exit mirror 10
cp "$tmp/disk" "$tmp/dst.img"
dd if=/dev/zero of="$tmp/dst.img" bs=4k seek=77 count=1 conv=notrunc status=none
start_dest dst file $size
relay standing --rename
has_to_exit 7 timeout 30 "$NBDMIRROR" mirror "${control[now]}" \
  "nbd+unix:///mirror?socket=${socket[standing]}" --sync incremental --since one \
  --on-ready complete
grep -q "does not stand at checkpoint" "$tmp/err" || fail "for another reason: $(cat "$tmp/err")"
stop standing
stop other
stop now
stop dst
rm "$tmp/dst.img"
cp "$tmp/before" "$tmp/other.img"

# A relay, or an address that several servers share: nothing shows but what is read.
start_dest dst file $size
start_dest other file $size
relay shared
spawn mirror nbdmirror mirror "${control[src]}" "${uri[shared]}"
settled
stop mirror KILL
wait_state "${control[src]}" detached 20
"$python" -c '
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for i in range(64):
    h.pwrite(os.urandom(131072), i * 262144)
h.shutdown()' "${uri[src]}"
kill -USR1 "${pid[shared]}"
has_to_exit 7 timeout 30 "$NBDMIRROR" mirror "${control[src]}" "${uri[shared]}" --resume \
  --quarantine-grace 100ms
grep -q "is not the destination" "$tmp/err" || fail "refused for another reason: $(cat "$tmp/err")"
untouched "another server"

# All that could be compared, but for zeroes, was being written to when the worker was killed, and
# an empty disk comes into the destination's place.
head -c 1M /dev/urandom >"$tmp/small"
head -c 1M /dev/zero >>"$tmp/small"
start_server small "$tmp/small"
start_dest first file 2M
spawn mirror nbdmirror mirror "${control[small]}" "${uri[first]}"
settled small
sigstop "${pid[first]}"
"$python" -c '
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for i in range(4):
    h.pwrite(os.urandom(4096), i * 262144)
h.shutdown()' "${uri[small]}"
all_in_flight () { [ "$(status_of "${control[small]}" claimed-bytes)" = 16384 ]; }
wait_for 20 all_in_flight
stop mirror KILL
stop first KILL
wait_state "${control[small]}" detached 20
start_dest empty file 2M
nbdmirror mirror "${control[small]}" "${uri[empty]}" --resume --quarantine-grace 100ms \
  --on-ready complete >"$tmp/out" 2>"$tmp/err" || fail "not copied again: $(cat "$tmp/err")"
equal "$tmp/small" "${uri[empty]}"
grep -q "everything is copied again" "$tmp/err" || fail "nothing is told: $(cat "$tmp/err")"
stop empty
stop small

# Nothing differs from the base, so nothing was sent when the server was lost.  Or only zeroes were
# sent, which an empty disk has as well.  It does not hold the base.
cp "$tmp/disk" "$tmp/alike.base"
for sent in nothing zeroes; do
  cp "$tmp/disk" "$tmp/alike"
  [ $sent = nothing ] ||
    dd if=/dev/zero of="$tmp/alike" bs=1M seek=1 count=1 conv=notrunc status=none
  cp "$tmp/disk" "$tmp/late.img"
  start_server $sent "$tmp/alike"
  start_dest late file $size --filter="$NBDMIRROR_DIGEST_FILTER"
  spawn mirror nbdmirror mirror "${control[$sent]}" "${uri[late]}" --sync base \
    --base "$tmp/alike.base"
  settled $sent
  stop late KILL
  rm "$tmp/late.img"
  start_dest late file $size
  wait_exit mirror 20
  [ "$status" = 7 ] || fail "$sent was sent: an empty disk comes, and the worker ends with $status"
  grep -q "is not the destination" "$tmp/mirror.log" || fail "$sent was sent: refused otherwise"
  stop $sent
  stop late
  rm "$tmp/mirror.log"
done

# A run of two blocks was sent, whose first one is compared.  That was being written to when the
# worker was killed, and another copy of the base comes into the destination's place.  It holds all
# that was found there, and lacks the second block.
cp "$tmp/small" "$tmp/small.base"
write_first () {
  "$python" -c '
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(os.urandom(int(sys.argv[2])), 0)
h.shutdown()' "${uri[again]}" "$1"
}
start_server again "$tmp/small"
write_first 8192
cp "$tmp/small.base" "$tmp/one.img"
start_dest one file 2M --filter="$NBDMIRROR_DIGEST_FILTER"
spawn mirror nbdmirror mirror "${control[again]}" "${uri[one]}" --sync base \
  --base "$tmp/small.base"
settled again
sigstop "${pid[one]}"
write_first 4096
in_flight_again () { [ "$(status_of "${control[again]}" claimed-bytes)" = 4096 ]; }
wait_for 20 in_flight_again
stop mirror KILL
stop one KILL
wait_state "${control[again]}" detached 20
cp "$tmp/small.base" "$tmp/one.img"
start_dest one file 2M --filter="$NBDMIRROR_DIGEST_FILTER"
nbdmirror mirror "${control[again]}" "${uri[one]}" --resume --sync base --base "$tmp/small.base" \
  --quarantine-grace 100ms --on-ready complete >"$tmp/out" 2>"$tmp/err" ||
  fail "not copied again: $(cat "$tmp/err")"
equal "$tmp/small" "${uri[one]}"
grep -q "everything is copied again" "$tmp/err" || fail "nothing is told: $(cat "$tmp/err")"

# Nothing differs, so nothing was sent when the server was lost.  Another disk comes, which differs
# in a few blocks.  A compare job finds them.  An incremental one looks at more than a few.
for mode in compare "incremental --since one --trust-destination"; do
  rm -f "$tmp/now.state"
  cp "$tmp/disk" "$tmp/now"
  cp "$tmp/disk" "$tmp/late.img"
  cp "$tmp/disk" "$tmp/swapped"
  "$python" -c '
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY)
for block in range(10, 4096, 100):
    os.pwrite(fd, os.urandom(4096), block * 4096)' "$tmp/swapped"
  cp "$tmp/swapped" "$tmp/swapped.copy"
  start_stateful now "$tmp/now" "$tmp/now.state"
  nbdmirror checkpoint add "${control[now]}" one
  start_dest late file $size
  # shellcheck disable=SC2086
  spawn mirror nbdmirror mirror "${control[now]}" "${uri[late]}" --sync $mode
  settled now
  stop late KILL
  mv "$tmp/swapped" "$tmp/late.img"
  start_dest late file $size
  if [ "$mode" = compare ]; then
    wait_for 20 grep -q "everything is compared again" "$tmp/mirror.log"
    settled now
    nbdmirror complete "${control[now]}"
    wait_exit mirror 10
    equal "$tmp/now" "${uri[late]}"
    rm -f "${control[now]}.fence"
  else
    # It may be a write of the guest that has not ended: that is waited for.
    wait_exit mirror 60
    [ "$status" = 7 ] || fail "$mode: another disk comes, and the worker ends with $status"
    grep -q "is not the destination" "$tmp/mirror.log" || fail "$mode: refused otherwise"
    cmp "$tmp/late.img" "$tmp/swapped.copy" || fail "$mode: another disk was written to"
  fi
  stop now
  stop late
  rm "$tmp/mirror.log"
done
