#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that the digest filter serves the digests that libxxhash computes, of disks of any size and
# in requests of any alignment; that holes of the disk are holes of the digests; that it refuses the
# names and requests that are too much; and that the disk beside it is served as before, and can be
# written to while its digests are read.
. "$(dirname "$0")/lib.sh"

serve=("${nbdmirror_prefix[@]}" "${server_env[@]}" nbdkit -f)

# serve NAME ARGS...
serve () {
  local name=$1; shift
  server_paths "$name"
  rm -f "${socket[$name]}"
  spawn "$name" "${serve[@]}" -U "${socket[$name]}" --filter="$NBDMIRROR_DIGEST_FILTER" "$@"
  wait_for_socket "${socket[$name]}" "$name"
}

digests () { "$python" "$srcdir/tests/blackbox/digest-client.py" "$@"; }

for size in 0 1 511 4095 4096 4097 65536 1048575 1048577 5M+77 16M; do
  size=$(bytes "$size")
  rm -f "$tmp/disk"
  random_disk "$tmp/disk" "$size"
  serve odd file "$tmp/disk"
  digests check "${socket[odd]}" "$tmp/disk" || fail "wrong digests of a disk of $size bytes"
  stop odd
done

# A plugin that knows no block status: no holes then, and the same digests.
serve plain --filter=noextents file "$tmp/disk"
digests check "${socket[plain]}" "$tmp/disk" --no-holes || fail "wrong without block status"
stop plain

# Exports have names: those of the layer below, and their digests.
mkdir "$tmp/dir"
random_disk "$tmp/dir/a" 1M
random_disk "$tmp/dir/b" 2M+1
serve many file dir="$tmp/dir"
digests check "${socket[many]}" "$tmp/dir/a" --export a || fail "wrong digests of export a"
digests check "${socket[many]}" "$tmp/dir/b" --export b || fail "wrong digests of export b"
digests refuse "${socket[many]}" --export no-such || fail "it served an export that does not exist"
stop many

# 8 TiB, and only the first and the last mebibyte are data: block status has to cross it quickly.
truncate -s 8T "$tmp/large" || truncate -s 1T "$tmp/large"
random_disk "$tmp/mebibyte" 1M
dd if="$tmp/mebibyte" of="$tmp/large" conv=notrunc status=none
serve large file "$tmp/large"
digests large "${socket[large]}" "$tmp/mebibyte" || fail "the digests of a large disk are wrong"
stop large

truncate -s 200M "$tmp/disk"       # more than one request may ask about
serve bounds file "$tmp/disk"
digests bounds "${socket[bounds]}" || fail "a bound does not hold"
digests writer "${socket[bounds]}" "$tmp/disk" || fail "the disk and its digests disagree"
stop bounds
[ "$(grep -c 'is refused: with blocks' "$tmp/bounds.log")" -le 3 ] ||
  fail "a client can flood the log"
