#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a state file which cannot be written harms nobody: the guest's writes succeed and do
# not wait for long, the status and the log say that the file is inconsistent, and the job goes on
# in memory.  When the server is killed after that, while the file still cannot be written, the next
# one takes every block for dirty, also in another boot, and a checkpoint is not to be believed.
. "$(dirname "$0")/lib.sh"
[ "$(make_var SANITIZERS)" = no ] || skip "a sanitizer is preloaded already"
[ "${VALGRIND:-0}" = 0 ] || skip "not under valgrind"
cc=$(make_var CC)
need "${cc%% *}"

size=64M state=$tmp/state

# Writes and syncs of the state file fail while the file $tmp/fault is there.
cat >"$tmp/fault.c" <<'EOF'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int
faulty (int fd)
{
  char link[64], path[4096];
  snprintf (link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink (link, path, sizeof path - 1);

  if (n < 0)
    return 0;
  path[n] = 0;
  errno = EIO;
  return strcmp (path, getenv ("STATE_FILE")) == 0 && access (getenv ("STATE_FAULT"), F_OK) == 0;
}

ssize_t
pwrite (int fd, const void *data, size_t length, off_t offset)
{
  static ssize_t (*real) (int, const void *, size_t, off_t);
  if (!real)
    real = dlsym (RTLD_NEXT, "pwrite");
  return faulty (fd) ? -1 : real (fd, data, length, offset);
}

int
fdatasync (int fd)
{
  static int (*real) (int);
  if (!real)
    real = dlsym (RTLD_NEXT, "fdatasync");
  return faulty (fd) ? -1 : real (fd);
}

int
msync (void *data, size_t length, int flags) /* the server does it to the state file only */
{
  static int (*real) (void *, size_t, int);
  if (!real)
    real = dlsym (RTLD_NEXT, "msync");
  errno = EIO;
  return access (getenv ("STATE_FAULT"), F_OK) == 0 ? -1 : real (data, length, flags);
}
EOF
$cc -shared -fPIC -O1 -w -o "$tmp/fault.so" "$tmp/fault.c" -ldl ||
  fail "the shim does not build"

serve () {
  server_paths src
  rm -f "${socket[src]}" "${control[src]}"
  spawn src env LD_PRELOAD="$tmp/fault.so" STATE_FILE="$state" STATE_FAULT="$tmp/fault" \
    nbdkit -f -U "${socket[src]}" --filter="$NBDMIRROR_FILTER" file "$tmp/disk" \
    "mirror-control=${control[src]}" "mirror-uri=${uri[src]}" "mirror-direct=$tmp/disk" \
    "mirror-state=$state" mirror-state-volatile=yes
  wait_for_socket "${socket[src]}" src
  wait_for_socket "${control[src]}" src
}
status_is () { [ "$(status_of "${control[src]}" "$1")" = "$2" ]; }

# write_blocks OFFSET COUNT LIMIT: a guest writes COUNT blocks, each into an extent of its own, and
# flushes.  Nothing fails, and nothing takes LIMIT seconds.
write_blocks () {
  set -- "$(bytes "$1")" "$2" "$3"
  "$python" - "${uri[src]}" "$@" <<'EOF' || fail "the guest: see above"
import nbd, os, sys, time
h = nbd.NBD()
h.connect_uri(sys.argv[1])
slowest = 0
for i in range(int(sys.argv[3])):
    start = time.monotonic()
    h.pwrite(os.urandom(4096), int(sys.argv[2]) + (4 << 20) * i)
    slowest = max(slowest, time.monotonic() - start)
h.flush()
h.shutdown()
if slowest >= float(sys.argv[4]):
    sys.exit(f"the slowest write took {slowest:.2f} s")
EOF
}

start_mirror () {
  spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}" "$@"
  wait_state "${control[src]}" ready 40
  wait_for 20 status_is dirty-bytes 0
  wait_for 20 status_is claimed-bytes 0
}

random_disk "$tmp/disk" $size
start_dest dst file $size
serve
start_mirror
status_is state-status active || fail "the file is not in use"

touch "$tmp/fault"
write_blocks 8M 6 2
wait_for 10 status_is state-status inconsistent
wait_for 10 grep -q "is inconsistent: .*Input/output error" "$tmp/src.log"
write_blocks 36M 4 1
wait_for 20 status_is dirty-bytes 0

# Server and worker are killed while more is on its way, and the file still fails.
sigstop "${pid[mirror]}"
write_blocks 9M 6 1
kill -KILL "${pid[mirror]}" "${pid[src]}"
wait "${pid[mirror]}" "${pid[src]}" 2>/dev/null || :
rm -f "$tmp/fault"
serve
[ "$(status_of "${control[src]}" state-recovered-bytes)" = "$(bytes $size)" ] ||
  fail "what was written while the file failed may be missing"
start_mirror --resume
complete_soon "${control[src]}"
wait_exit mirror 20
equal "$tmp/disk" "${uri[dst]}"
nbdmirror rollback "${control[src]}" --destination-stopped \
  --token "$(status_of "${control[src]}" rollback-token)"

# Another disk, of another size, while the file fails: that is told once.
nbdmirror checkpoint add "${control[src]}" first
stop src
rm "$tmp/disk"
random_disk "$tmp/disk" 32M
serve
touch "$tmp/fault"
nbdinfo --size "${uri[src]}" >"$tmp/size"
wait_for 10 status_is state-status inconsistent
for i in 1 2 3 4 5; do
  status_is state-status inconsistent || fail "look $i at the status"
done
[ "$(grep -c 'it is of a disk of .* not of this one' "$tmp/src.log")" = 1 ] ||
  fail "told again and again: $(cat "$tmp/src.log")"
rm -f "$tmp/fault"
stop src
random_disk "$tmp/disk" $size

# The same in another boot, which does not know what was only in memory.
marked () {
  "$python" -c 'import os, sys; os.getxattr(sys.argv[1], "user.nbdmirror.tracked")' "$tmp/disk" \
    2>/dev/null
}
unmarked () { ! marked; }
map () { nbdmirror dirty-map "${control[src]}" --since "$1"; }
rm "$state"
serve
nbdmirror checkpoint add "${control[src]}" one
if ! marked; then
  note "no extended attributes here: another boot is not tried"
  exit 0
fi
touch "$tmp/fault"
write_blocks 8M 2 2
wait_for 10 status_is state-status inconsistent
wait_for 10 unmarked
write_blocks 36M 2 1
kill -KILL "${pid[src]}"
wait "${pid[src]}" 2>/dev/null || :
rm -f "$tmp/fault"
/usr/bin/python3 "$srcdir/tests/blackbox/other-boot.py" "$state"
serve
has_to_exit 7 map one

# What is tracked anew, in the server that lost it, is to be believed after a crash.
nbdmirror checkpoint remove "${control[src]}" one
nbdmirror checkpoint add "${control[src]}" two
touch "$tmp/fault"
write_blocks 8M 2 2
wait_for 10 unmarked
rm -f "$tmp/fault"
nbdmirror checkpoint add "${control[src]}" three
write_blocks 36M 1 1
kill -KILL "${pid[src]}"
wait "${pid[src]}" 2>/dev/null || :
serve
has_to_exit 7 map two
map three | grep -q "$(bytes 36M)" || fail "what was tracked anew was forgotten"
