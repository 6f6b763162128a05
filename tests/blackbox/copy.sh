#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that `copy` takes what users of nbdcopy type: `-` for streams in both directions, `null:`,
# a destination that cannot be read, progress or none, and says what to type for the rest.
# shellcheck disable=SC2002,SC2015,SC2016
. "$(dirname "$0")/lib.sh"

cd "$tmp"
now_ms () { echo $((${EPOCHREALTIME/./} / 1000)); }
# with_input FILE STATUS COMMAND...: as has_to_exit.
with_input () {
  local file=$1 want=$2 got=0
  shift 2
  "$@" <"$file" >out 2>err || got=$?
  [ "$got" = "$want" ] || fail "exit status $got instead of $want from: $*: $(cat err)"
}

head -c 3M /dev/urandom >data
{ cat data; head -c 2M /dev/zero; head -c 1000001 data; } >disk   # an odd end, and zeroes inside
{ cat data; head -c 1M /dev/zero; } >zero-end
size=$(stat -c %s disk)

# From a stream: to a file that is missing, one that is longer, and one that ends with zeroes.
cat disk | nbdmirror copy - new --no-progress 2>err || fail "from a pipe: $(cat err)"
cmp disk new
grep -q "^nbdmirror: copy: copied: 5.95 MiB in .* 3.95 MiB of it sent as data" err ||
  fail "the last line is $(cat err)"
[ "$(stat -c %b new)" -lt $((5 * 2048)) ] || fail "zeroes of a stream were written as data"
{ cat data data data; echo end; } >longer
cp longer expected
dd if=disk of=expected bs=1M conv=notrunc status=none
with_input disk 0 nbdmirror copy - longer
cmp expected longer
with_input zero-end 0 nbdmirror copy - zeroes
cmp zero-end zeroes
with_input /dev/null 0 nbdmirror copy - nothing
[ -f nothing ] && [ ! -s nothing ] || fail "an empty stream made $(ls -l nothing)"
# No input is not an empty one.
got=0
nbdmirror copy - nothing <&- 2>err || got=$?
[ "$got" = 1 ] || fail "standard input is closed: exit status $got"

# To and from a server; one with large blocks; one that is too small.
start_dest nbd file 8M
cat disk | nbdmirror copy - "${uri[nbd]}" 2>err || fail "to a server: $(cat err)"
cmp -n "$size" disk nbd.img
head -c 8M /dev/urandom >blocks
with_input disk 0 nbdmirror copy - \
  [ nbdkit --filter=blocksize-policy file blocks blocksize-minimum=4096 \
  blocksize-preferred=4096 blocksize-error-policy=error ]
cmp -n "$size" disk blocks
with_input disk 7 nbdmirror copy - [ nbdkit memory 1M ]
grep -q 'too small: it has 1048576 bytes, and the stream has more' err || fail "$(cat err)"
nbdmirror copy "${uri[nbd]}" - 2>err | cmp - nbd.img
# One that takes no more than 64 KiB at a time.
start_fake short --size 8M --min-block 4k --max-block 64k
with_input disk 0 nbdmirror copy - "${uri[short]}"
nbdmirror copy "${uri[short]}" - >short 2>err || fail "from requests of 64 KiB: $(cat err)"
cmp -n "$size" disk short
stop short
# A long stream is flushed on its way too, beside the trial at the start and the end: the last flush
# of a server that has it all in its page cache would take too long.
head -c 4097M /dev/zero | nbdmirror copy - [ nbdkit --filter=log memory 5G logfile=flushes ] \
  2>err || fail "a long stream: $(cat err)"
[ "$(grep -c ' Flush id=' flushes)" = 3 ] || fail "not three flushes: $(grep Flush flushes)"
nbdmirror copy disk - 2>err >out-file || fail "to a file as a stream: $(cat err)"
cmp disk out-file
nbdmirror copy disk - --report report 2>err | { sleep 1; cat; } | cmp - disk  # a slow reader
[ "$(field size <report)" = "$size" ] && [ "$(field state <report)" = completed ] ||
  fail "the report is $(cat report)"

# A limit holds, a reader that has gone is an error, and Ctrl-C stops it.
start=$(now_ms)
nbdmirror copy disk - --bandwidth 4M 2>err | cmp - disk
[ $(($(now_ms) - start)) -ge 1200 ] || fail "6 MiB at 4 MiB/s took $(($(now_ms) - start)) ms"
got=0
nbdmirror copy "${uri[nbd]}" - 2>err | head -c 100 >out || got=$?
[ $got = 1 ] && grep -q 'standard output: Broken pipe' err || fail "a closed pipe: $got, $(cat err)"
spawn endless bash -c 'exec "$@" < <(yes)' bash "${nbdmirror_prefix[@]}" "$NBDMIRROR" copy - \
  growing --bandwidth 4M --report report
wait_for 10 test -s growing
kill -INT "${pid[endless]}"
got=0
wait "${pid[endless]}" || got=$?
[ $got = 6 ] || fail "SIGINT: exit status $got"
[ "$(field state <report)" = cancelled ] || fail "SIGINT: $(cat report)"
rm growing report

# null: takes everything; it is no source, and no place for a mirror.
has_to_exit 0 nbdmirror copy disk null:
with_input disk 0 nbdmirror copy - null:
has_to_exit 2 nbdmirror copy null: disk
grep -q 'it is for DEST' err || fail "$(cat err)"
for command in "mirror none" "verify disk"; do
  for word in - null:; do
    # shellcheck disable=SC2086
    has_to_exit 2 nbdmirror $command $word
    grep -q "only 'nbdmirror copy' takes it" err || fail "$command $word: $(cat err)"
  done
done

# A destination that cannot be read.
has_to_exit 0 nbdmirror copy data [ nbdkit eval get_size='echo 3145728' can_write='exit 0' \
  can_flush='exit 0' flush='exit 0' pread='echo EPERM it is never read >&2; exit 1' \
  pwrite='dd of='"$tmp/written"' oflag=seek_bytes seek=$4 conv=notrunc status=none' ]
cmp data written

# Progress, versions, and what nbdcopy has besides.
has_to_exit 0 nbdmirror copy data other --progress
grep -q ' %  ' err || fail "--progress printed none: $(cat err)"
has_to_exit 0 nbdmirror copy -p -C 2 --flush data other
has_to_exit 0 nbdmirror copy data other --no-progress
[ "$(wc -l <err)" = 1 ] || fail "--no-progress printed $(cat err)"
for version in -V --version "copy -V" "copy --version"; do
  # shellcheck disable=SC2086
  has_to_exit 0 nbdmirror $version
  [ "$(cat out)" = "nbdmirror $(make_var PACKAGE_VERSION)" ] || fail "$version: $(cat out)"
done
has_to_exit 2 nbdmirror -v
grep -q 'print the version' err || fail "-v: $(cat err)"
for habit in -v "-R 8" "-T 2" --request-size=65536 --queue-size=1M --synchronous --no-extents \
  --blkhash; do
  # shellcheck disable=SC2086
  has_to_exit 2 nbdmirror copy $habit data other
  grep -q "^nbdmirror: copy: -.*not an option of nbdmirror: ....*" err || fail "$habit: $(cat err)"
done
has_to_exit 2 nbdmirror copy - -
has_to_exit 2 nbdmirror copy disk - --json
has_to_exit 2 nbdmirror copy - disk --give-up-after 5s
