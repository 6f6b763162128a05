#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves what becomes of zeroes (--sparse): holes stay holes, and room that is allocated at the
# source stays allocated at the destination, unless the user wants all of it thin, or all of it
# thick.  With --destination-is-zero nothing is written where the source has a hole.
# shellcheck disable=SC2016
. "$(dirname "$0")/lib.sh"
need fallocate filefrag

cd "$tmp"
# On a file system that tells what is allocated: each file has 8 MiB of zeroes, after 1 MiB of data.
full=$((9 * 2048)) thin=$((3 * 2048)) # in blocks of 512 bytes, at least and at most
for kind in hole unwritten zeroes; do head -c 1M /dev/urandom >$kind; done
truncate -s 9M hole
truncate -s 9M unwritten
fallocate -l 9M unwritten 2>fallocate.err || skip "no fallocate here: $(cat fallocate.err)"
head -c 8M /dev/zero >>zeroes
sync hole unwritten zeroes
"$python" - unwritten <<'PY' || skip "this file system does not tell what is allocated (FIEMAP)"
import fcntl, struct, sys
request = bytearray(struct.pack("=QQLLLL", 0, 9 << 20, 0, 0, 8, 0) + bytes(56 * 8))
try:
    fcntl.ioctl(open(sys.argv[1]), 0xC020660B, request)
except OSError:
    sys.exit(1)
PY

# allocated FILE thin|full
allocated () {
  local blocks
  sync "$1"
  blocks=$(stat -c %b "$1")
  if [ "$2" = full ]; then [ "$blocks" -ge $full ]; else [ "$blocks" -le $thin ]; fi ||
    fail "$1 takes $blocks blocks, which is not $2"
}

# Copied to a new file, and to a server: what a source has, and what it gets with each option.
while read -r kind option want; do
  rm -f new
  # shellcheck disable=SC2086
  has_to_exit 0 nbdmirror copy $kind new ${option//,/ }
  cmp "$kind" new
  allocated new "$want"
  rm -f served.img
  start_dest served file 9M
  # shellcheck disable=SC2086
  has_to_exit 0 nbdmirror copy $kind "${uri[served]}" ${option//,/ }
  stop served
  cmp "$kind" served.img
  allocated served.img "$want"
done <<'END'
hole --sparse,auto thin
unwritten --sparse,auto full
zeroes --sparse,auto full
hole --sparse,always thin
unwritten --sparse,always thin
zeroes --sparse,always thin
hole --sparse,never full
unwritten --allocated full
zeroes --sparse,never full
END
has_to_exit 0 sh -c 'cat zeroes | "$1" copy - thick --allocated' sh "$NBDMIRROR"
allocated thick full
has_to_exit 0 sh -c 'cat zeroes | "$1" copy - sparse' sh "$NBDMIRROR"
allocated sparse thin

# Where the destination holds something else, and it is compared with that, or with a base: over one
# connection, on which others are being read when a run's zeroes are asked about.
server_paths one
spawn one nbdkit -f -U "${socket[one]}" --filter=multi-conn file "$tmp/zeroes" \
  multi-conn-mode=disable
wait_for_socket "${socket[one]}" one
head -c 9M /dev/zero | tr '\0' x >base
for options in "--sync compare" "--sync base --base $tmp/base --trust-base"; do
  cp base served.img
  start_dest served file 9M
  # shellcheck disable=SC2086
  has_to_exit 0 nbdmirror copy "${uri[one]}" "${uri[served]}" $options
  stop served
  cmp zeroes served.img
  allocated served.img full
done
stop one

# A hole and allocated zeroes in one block of 64 KiB, and within the last odd block.
truncate -s $(((1 << 20) + 100000)) mixed
fallocate -o 20k -l 100k mixed
rm -f new
has_to_exit 0 nbdmirror copy mixed new
cmp mixed new

# A guest zeroes without unmapping, before and during a mirror, in large and small pieces; it trims.
head -c 16M /dev/urandom >disk
start_server src "$tmp/disk"
start_dest dst file 16M
guest () {
  "$python" - "${socket[src]}" "$1" <<'PY'
import nbd, sys
h = nbd.NBD()
h.connect_unix(sys.argv[1])
base = int(sys.argv[2]) << 20
h.zero(1 << 20, base, nbd.CMD_FLAG_NO_HOLE)
h.zero(8192, base + (2 << 20), nbd.CMD_FLAG_NO_HOLE)
h.zero(1 << 20, base + (3 << 20))
h.flush()
h.shutdown()
PY
}
guest 0
spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}"
wait_state "${control[src]}" ready 30
guest 8
wait_state "${control[src]}" ready 30
has_to_exit 0 nbdmirror complete "${control[src]}"
wait_exit mirror 20 || fail "the worker's exit status is not 0"
equal "$tmp/disk" "${uri[dst]}"
"$python" - disk dst.img <<'PY' || fail "what is a hole here is none there, or the other way round"
import subprocess, sys
M = 1 << 20
def allocated (path, offset, length):
    """How many blocks of 4 KiB of that part of the file."""
    text = subprocess.run(["filefrag", "-b4096", "-e", path], capture_output=True, text=True).stdout
    n = 0
    for line in text.splitlines():
        parts = line.replace("..", " ").replace(":", " ").split()
        if parts and parts[0].isdigit() and len(parts) > 5:
            first, last = int(parts[1]), int(parts[2])
            n += max(0, min(last + 1, (offset + length) // 4096) - max(first, offset // 4096))
    return n
for base in 0, 8:
    for what, at, length, want in (("zeroes", 0, M, 256), ("few zeroes", 2 * M, 8192, 2),
                                   ("a hole", 3 * M, M, 0)):
        for path in sys.argv[1:]:
            got = allocated(path, base * M + at, length)
            assert got == want, f"{path}: {what} at {base} MiB: {got} blocks, not {want}"
PY

# --destination-is-zero: no zeroes are written, and none are asked for.
truncate -s 9M log.img
has_to_exit 0 nbdmirror copy hole --destination-is-zero \
  [ nbdkit --filter=log file log.img logfile="$tmp/requests" ]
cmp hole log.img
grep -q ' Write ' requests || fail "nothing was written: $(cat requests)"
! grep -E ' (Zero|Extents) ' requests || fail "the destination was asked for zeroes"

has_to_exit 2 nbdmirror copy hole new --sparse=4096
grep -q 'must be auto, always or never' err || fail "$(cat err)"
has_to_exit 2 nbdmirror copy -S 0 hole new
grep -q 'says what becomes of them' err || fail "$(cat err)"
