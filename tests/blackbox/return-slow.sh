#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that the control socket of a disk that was received answers, and that its guest writes,
# while the disk is flushed for the checkpoint with which the guest begins.  What asks for that
# checkpoint waits until it is there.  And that a disk which comes back records that it is sealed,
# though the mirror that seals it goes while the old fence is being removed.  And that a seal is
# answered only when the record of it is durable, and that a record which could not be made durable
# is made so by the next server.
. "$(dirname "$0")/lib.sh"
. "$srcdir/tests/blackbox/return-lib.sh"
measures_times
[ "$(make_var SANITIZERS)" = no ] || skip "a sanitizer is preloaded already"
[ "${VALGRIND:-0}" = 0 ] || skip "not under valgrind"
cc=$(make_var CC)
need "${cc%% *}"

size=16M
at_a=$tmp/a.img at_b=$tmp/b.img
random_disk "$at_a" $size

# A flush of $SLOW through a descriptor that cannot write, which is the tracker's and not the
# guest's, waits while there is a file $SLOW.slow.  So does the removal of a fence.  fsync() waits
# while there is a file $SLOW.fsync, and fails while there is one $SLOW.fails; else it leaves a file
# $SLOW.synced.
cat >"$tmp/slow.c" <<'EOF'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* $SLOW with SUFFIX. */
static const char *
name_of (const char *suffix)
{
  static _Thread_local char name[4096];

  snprintf (name, sizeof name, "%s%s", getenv ("SLOW"), suffix);
  return name;
}

static void
wait_while (const char *suffix)
{
  while (access (name_of (suffix), F_OK) == 0)
    usleep (10000);
}

static int
is_slow (int fd)
{
  char link[64], path[4000];

  snprintf (link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink (link, path, sizeof path - 1);
  path[n > 0 ? n : 0] = 0;
  return strcmp (path, getenv ("SLOW")) == 0;
}

int
fdatasync (int fd)
{
  int (*real) (int) = dlsym (RTLD_NEXT, "fdatasync");

  if ((fcntl (fd, F_GETFL) & O_ACCMODE) == O_RDONLY && is_slow (fd))
    wait_while (".slow");
  return real (fd);
}

int
fsync (int fd)
{
  int (*real) (int) = dlsym (RTLD_NEXT, "fsync");

  if (!is_slow (fd))
    return real (fd);
  wait_while (".fsync");
  if (access (name_of (".fails"), F_OK) == 0) {
    errno = EIO;
    return -1;
  }
  int r = real (fd);
  close (open (name_of (".synced"), O_WRONLY | O_CREAT, 0600));
  return r;
}

int
unlink (const char *path)
{
  int (*real) (const char *) = dlsym (RTLD_NEXT, "unlink");

  if (strlen (path) > 6 && strcmp (path + strlen (path) - 6, ".fence") == 0)
    wait_while (".slow");
  return real (path);
}
EOF
$cc -shared -fPIC -O1 -w -o "$tmp/slow.so" "$tmp/slow.c" -ldl || fail "the shim does not build"

start_stateful a "$at_a" "$tmp/a.state"
touch "$at_b.slow"
export SLOW=$at_b LD_PRELOAD=$tmp/slow.so
receive b "$at_b" --size $size
unset SLOW LD_PRELOAD
moves a b
compare "$at_a" "$at_b" || fail "the disks differ after the move"
write_blocks "${guest_uri[b]}" 1 8
for _ in 1 2 3 4 5; do
  spawn look nbdmirror status "${control[b]}"
  ends_well look 5 "during a flush"
done
spawn list nbdmirror checkpoint list "${control[b]}"
sleep 0.5
running list || fail "the list came before the flush: $(cat "$tmp/list.log")"
rm "$at_b.slow"
ends_well list
has_checkpoint b || fail "there is no checkpoint after the flush"

# The way back.  The mirror's seal waits for the fence to go, and the mirror goes first.
"$python" -c 'import os, sys; os.setxattr(sys.argv[1], "user.test", b"x")' "$at_a" ||
  skip "no extended attributes in $tmp"
stop a
touch "$at_a.slow"
export SLOW=$at_a LD_PRELOAD=$tmp/slow.so
receive a "$at_a" --resume
unset SLOW LD_PRELOAD
spawn seal "$python" -c 'import nbd, sys
h = nbd.NBD()
h.set_export_name("mirror@seal")
h.connect_unix(sys.argv[1])' "${socket[a]}"
sealed () {
  "$python" -c 'import nbd, sys
h = nbd.NBD(); h.set_opt_mode(True); h.connect_unix(sys.argv[1]); h.opt_list(print)
h.opt_abort()' "${socket[a]}" | grep -q sealed
}
wait_for 10 sealed
running seal || fail "the seal did not wait"
stop seal KILL
wait_for 10 grep -q 'sealed, but' "$tmp/a.log"
rm "$at_a.slow"
write_blocks "${guest_uri[a]}" 2 1
"$python" -c 'import os, sys; os.getxattr(sys.argv[1], "user.nbdmirror.sealed")' "$at_a" ||
  fail "the guest writes, and it is not recorded that the disk is its own"

# Sealed is said once it is durable.
touch "$tmp/c.img.fsync"
export SLOW=$tmp/c.img LD_PRELOAD=$tmp/slow.so
start_receive c "$tmp/c.img" --size $size
unset SLOW LD_PRELOAD
spawn seal "$NBDMIRROR" receive --seal "${uri[c]}"
sealed () {
  "$python" -c 'import os, sys; os.getxattr(sys.argv[1], "user.nbdmirror.sealed")' "$tmp/c.img"
}
wait_for 10 sealed
sleep 0.5
running seal || fail "the seal was answered before its record was durable"
rm "$tmp/c.img.fsync"
ends_well seal

# A server that is started again does not wait for that: it is durable already.
stop c
touch "$tmp/c.img.fsync"
export SLOW=$tmp/c.img LD_PRELOAD=$tmp/slow.so
start_receive c "$tmp/c.img" --resume
unset SLOW LD_PRELOAD
[ "$(field sealed <"$tmp/c.json")" = true ] || fail "resumed: not sealed"
rm "$tmp/c.img.fsync"

# Unless it could not be made durable.  Then the next server does that.
stop c
touch "$tmp/d.img.fails"
export SLOW=$tmp/d.img LD_PRELOAD=$tmp/slow.so
start_receive d "$tmp/d.img" --size $size
nbdmirror receive --seal "${uri[d]}"
stop d
[ ! -e "$tmp/d.img.synced" ] || fail "it was flushed though that fails"
rm "$tmp/d.img.fails"
start_receive d "$tmp/d.img" --resume
unset SLOW LD_PRELOAD
[ "$(field sealed <"$tmp/d.json")" = true ] || fail "not sealed, though it was not durable only"
[ -e "$tmp/d.img.synced" ] || fail "the next server takes for durable what was not flushed"
