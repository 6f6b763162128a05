#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
#
# Proves that a file system without O_DIRECT (ramfs here; tmpfs before Linux 6.6) will do as source
# and as destination, offline and of a served disk.  Only root can mount one, in a mount namespace
# of its own.

. "$(dirname "$0")/lib.sh"
if [ -z "${RAMFS-}" ]; then
  [ "$(id -u)" = 0 ] || skip "only root can mount a ramfs"
  unshare --mount true 2>/dev/null || skip "this environment does not allow mounts"
  mkdir "$tmp/ramfs"
  # Once more, in the namespace, with which the mount goes away.
  RAMFS=$tmp/ramfs unshare --mount --propagation private \
    bash "$srcdir/tests/blackbox/$test_name.sh" || exit
  exit 0
fi
mount -t ramfs none "$RAMFS" || skip "ramfs cannot be mounted"

head -c 3000001 /dev/urandom >"$RAMFS/a"
has_to_exit 0 nbdmirror copy "$RAMFS/a" "$RAMFS/b"
cmp "$RAMFS/a" "$RAMFS/b" || fail "the copy differs"
has_to_exit 0 nbdmirror verify "$RAMFS/a" "$RAMFS/b"

start_server src "$RAMFS/a"
has_to_exit 0 nbdmirror mirror "${control[src]}" "$RAMFS/c" --on-ready complete
cmp "$RAMFS/a" "$RAMFS/c" || fail "the mirrored disk differs"
