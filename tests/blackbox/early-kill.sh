#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a job that leaves out what the destination has goes on with what is left, also when
# its worker was killed before anything that it sent was durable: it need not send everything, since
# what was found at the destination is enough to recognise it, and to know another disk.
. "$(dirname "$0")/lib.sh"
proves_nothing_under thread
proves_nothing_under address
need qemu-img qemu-io qemu-nbd

size=$(bytes 96M)
head -c "$size" /dev/urandom >"$tmp/base"

attached () { [ "$(status_of "${control[src]}" worker)" = attached ]; }

# killed_early OPTIONS...: the worker never gets an answer to what it sends.
killed_early () {
  spawn worker nbdmirror mirror "${control[src]}" "${uri[dst]}" --bandwidth 1M "$@"
  wait_for 20 attached
  sigstop "${pid[dst]}"
  sleep 0.2
  stop worker KILL
  kill -CONT "${pid[dst]}"
  wait_state "${control[src]}" detached 10
  # nbdkit 1.32.4 to 1.33.9 may go with its client, a moment later.
  sleep 0.3
  running dst || start_dest dst file 96M --filter="$NBDMIRROR_DIGEST_FILTER"
}

# goes_on MOST OPTIONS...: no more than MOST bytes are sent.
goes_on () {
  local most=$1; shift
  nbdmirror mirror "${control[src]}" "${uri[dst]}" "$@" --resume --quarantine-grace 100ms \
    --on-ready complete --report "$tmp/report" >"$tmp/out" 2>"$tmp/err" ||
    fail "$*: ended with $?: $(cat "$tmp/err")"
  ! grep -q "copied again\|compared again" "$tmp/err" || fail "$*: $(cat "$tmp/err")"
  local sent
  sent=$(($(field sent-bytes <"$tmp/report") + $(field zero-bytes <"$tmp/report")))
  [ "$sent" -le "$most" ] || fail "$*: $sent bytes were sent"
  equal "$tmp/disk" "${uri[dst]}"
  stop dst
  stop src
  rm -f "${control[src]}.fence"
}

# write_some: most of the disk, so that the worker is far from its end when it is killed.
write_some () {
  "$python" -c '
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for i in range(64):
    h.pwrite(os.urandom(1 << 20), i << 20)
h.flush()
h.shutdown()' "${uri[src]}"
}

# other_disk N: another disk, which holds the base as well, but for each Nth block of a third.
other_disk () {
  cp "$tmp/base" "$tmp/other.img"
  "$python" -c '
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY)
for offset in range(64 << 20, 96 << 20, int(sys.argv[2]) * 4096):
    os.pwrite(fd, os.urandom(4096), offset)' "$tmp/other.img" "$1"
  cp "$tmp/other.img" "$tmp/other.copy"
  start_dest other file 96M --filter="$NBDMIRROR_DIGEST_FILTER"
}

other_untouched () {
  grep -q "is not the destination" "$tmp/err" || fail "another reason: $(cat "$tmp/err")"
  cmp "$tmp/other.img" "$tmp/other.copy" || fail "another disk was written to"
  stop other
}

note "base"
cp "$tmp/base" "$tmp/disk"
start_server src "$tmp/disk"
write_some
cp "$tmp/base" "$tmp/dst.img"
start_dest dst file 96M --filter="$NBDMIRROR_DIGEST_FILTER"
killed_early --sync base --base "$tmp/base"
other_disk 20
has_to_exit 7 nbdmirror mirror "${control[src]}" "${uri[other]}" --resume --sync base \
  --base "$tmp/base" --quarantine-grace 100ms --on-ready complete
other_untouched
goes_on $((80 << 20)) --sync base --base "$tmp/base"

note "incremental"
cp "$tmp/base" "$tmp/disk"
start_stateful src "$tmp/disk" "$tmp/state"
nbdmirror checkpoint add "${control[src]}" one
write_some
cp "$tmp/base" "$tmp/dst.img"
start_dest dst file 96M --filter="$NBDMIRROR_DIGEST_FILTER"
killed_early --sync incremental --since one --trust-destination
# Who goes on without a mode relies on what is clean as well.
other_disk 100
has_to_exit 7 nbdmirror mirror "${control[src]}" "${uri[other]}" --resume \
  --quarantine-grace 100ms --on-ready complete
other_untouched
# The next worker compares a thousand blocks first.  It is told to end meanwhile, and obeys.
stop dst
rm -f "${socket[dst]}"
spawn dst nbdkit -f -U "${socket[dst]}" --filter=log --filter=delay file "$tmp/dst.img" \
  "logfile=$tmp/reads" rdelay=300ms
wait_for_socket "${socket[dst]}" dst
spawn worker nbdmirror mirror "${control[src]}" "${uri[dst]}" --resume --sync incremental \
  --since one --trust-destination
wait_for 20 attached
stop worker TERM
[ "$status" = 3 ] || fail "SIGTERM: exit status $status: $(cat "$tmp/worker.log")"
reads=$(grep -c ' Read ' "$tmp/reads")
[ "$reads" -lt 700 ] || fail "SIGTERM: it has compared $reads blocks"
stop dst
start_dest dst file 96M --filter="$NBDMIRROR_DIGEST_FILTER"
goes_on $((80 << 20)) --sync incremental --since one --trust-destination

# The server does not say what format it is, so no base is found either.
note "top without a base"
qemu-img create -q -f qcow2 -b "$tmp/base" -F raw "$tmp/top.qcow2" 96M
qemu-io -f qcow2 -c 'write -P 7 5M 30M' "$tmp/top.qcow2" >"$tmp/io.log"
start_nbdkit src "$NBDMIRROR_IMAGE_PLUGIN" image="$tmp/top.qcow2" \
  image-format=qcow2 image-layers=@layers mirror-layers=@layers
cp "$tmp/base" "$tmp/dst.img"
start_dest dst file 96M
killed_early --sync top --trust-base
nbdmirror mirror "${control[src]}" "${uri[dst]}" --sync top --trust-base --resume \
  --quarantine-grace 100ms --on-ready complete || fail "ended with $?"
equal "${uri[src]}" "${uri[dst]}"
stop dst
stop src
rm -f "${control[src]}.fence"

# Here it is late: all was compared, and what differs was sent and flushed.  It is seldom what a
# request begins with, and nothing else proves the destination.
note "compare"
cp "$tmp/base" "$tmp/disk"
cp "$tmp/base" "$tmp/dst.img"
"$python" -c '
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY)
for offset in range(0, 96 << 20, 1 << 20):
    os.pwrite(fd, os.urandom(4096), offset + 20480)' "$tmp/disk"
start_server src "$tmp/disk"
start_dest dst file 96M --filter="$NBDMIRROR_DIGEST_FILTER"
spawn worker nbdmirror mirror "${control[src]}" "${uri[dst]}" --sync compare
wait_state "${control[src]}" ready 30
flushed () { [ "$(status_of "${control[src]}" claimed-bytes)" = 0 ]; }
wait_for 20 flushed
stop worker KILL
wait_state "${control[src]}" detached 10
sleep 0.3
running dst || start_dest dst file 96M --filter="$NBDMIRROR_DIGEST_FILTER"
goes_on $((2 << 20)) --sync compare
