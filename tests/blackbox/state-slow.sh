#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves what a slow sync does with a state file.  A flush of the disk that takes longer than the
# limit of 5 s delays no first touch and costs no tracking.  While a new checkpoint waits for one,
# the control socket answers.  A commit that takes longer than the limit lets the guest go on after
# 5 s; then the tracking is inconsistent, the status and the log say so, and the next writes do not
# wait.
. "$(dirname "$0")/lib.sh"
measures_times
[ "$(make_var SANITIZERS)" = no ] || skip "a sanitizer is preloaded already"
[ "${VALGRIND:-0}" = 0 ] || skip "not under valgrind"
cc=$(make_var CC)
need "${cc%% *}"

size=256M state=$tmp/state

# To make the file PATH durable waits while there is a file PATH.slow. PATH.waits says so.  What is
# synced in memory is the state file.
cat >"$tmp/slow.c" <<'EOF'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void
wait_for (const char *path)
{
  char slow[4096], waits[4096];

  snprintf (slow, sizeof slow, "%s.slow", path);
  snprintf (waits, sizeof waits, "%s.waits", path);
  while (access (slow, F_OK) == 0) {
    FILE *f = fopen (waits, "w");
    if (f)
      fclose (f);
    usleep (10000);
  }
}

int
fdatasync (int fd)
{
  static int (*real) (int);
  char link[64], path[4000];

  if (!real)
    real = dlsym (RTLD_NEXT, "fdatasync");
  snprintf (link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink (link, path, sizeof path - 1);
  path[n > 0 ? n : 0] = 0;
  wait_for (path);
  return real (fd);
}

int
msync (void *data, size_t length, int flags)
{
  static int (*real) (void *, size_t, int);
  if (!real)
    real = dlsym (RTLD_NEXT, "msync");
  wait_for (getenv ("STATE_FILE"));
  return real (data, length, flags);
}
EOF
$cc -shared -fPIC -O1 -w -o "$tmp/slow.so" "$tmp/slow.c" -ldl || fail "the shim does not build"

status_is () { [ "$(status_of "${control[src]}" "$1")" = "$2" ]; }

# write_blocks OFFSET COUNT LEAST MOST: a guest writes COUNT blocks, each into an extent of its own.
# The slowest takes at least LEAST, and less than MOST, seconds.
write_blocks () {
  set -- "$(bytes "$1")" "$2" "$3" "$4"
  "$python" - "${uri[src]}" "$@" <<'EOF' || fail "the guest: see above"
import nbd, os, sys, time
h = nbd.NBD()
h.connect_uri(sys.argv[1])
slowest = 0
for i in range(int(sys.argv[3])):
    start = time.monotonic()
    h.pwrite(os.urandom(4096), int(sys.argv[2]) + (4 << 20) * i)
    slowest = max(slowest, time.monotonic() - start)
h.shutdown()
if not float(sys.argv[4]) <= slowest < float(sys.argv[5]):
    sys.exit(f"the slowest write took {slowest:.2f} s")
EOF
}

random_disk "$tmp/disk" $size
start_dest dst memory $size
server_paths src
spawn src env LD_PRELOAD="$tmp/slow.so" STATE_FILE="$state" \
  nbdkit -f -U "${socket[src]}" --filter="$NBDMIRROR_FILTER" file "$tmp/disk" \
  "mirror-control=${control[src]}" "mirror-uri=${uri[src]}" "mirror-direct=$tmp/disk" \
  "mirror-state=$state" mirror-state-volatile=yes
wait_for_socket "${socket[src]}" src
wait_for_socket "${control[src]}" src
spawn mirror nbdmirror mirror "${control[src]}" "${uri[dst]}"
wait_state "${control[src]}" ready 40

# What the worker has copied is dropped from the state file once the disk is flushed.
write_blocks 0 4 0 3
touch "$tmp/disk.slow"
wait_for 40 test -e "$tmp/disk.waits"
write_blocks 32M 16 0 3
status_is state-status active || fail "a slow flush of the disk has cost the tracking"
# A checkpoint that is added then waits for a flush as well, and the control socket does not.
spawn add nbdmirror checkpoint add "${control[src]}" slow
for _ in 1 2 3 4 5 6 7 8 9 10; do
  spawn look nbdmirror status "${control[src]}"
  ends_well look 5 "during a flush"
done
running add || fail "a checkpoint was added before the disk was flushed"
rm "$tmp/disk.slow"
ends_well add
nbdmirror checkpoint list "${control[src]}" | grep -q slow || fail "the checkpoint is not there"

touch "$state.slow"
write_blocks 128M 1 4.9 8
wait_for 5 status_is state-status inconsistent
wait_for 5 grep -q "is inconsistent: the state file did not answer in time" "$tmp/src.log"
write_blocks 160M 4 0 3
rm "$state.slow"
stop mirror
stop src
nbdmirror state "$state" >"$tmp/state.txt" && fail "the file does not say that it is inconsistent"
grep -q "did not answer in time" "$tmp/state.txt" || fail "the file says: $(cat "$tmp/state.txt")"
