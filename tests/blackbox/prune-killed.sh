#!/usr/bin/env bash
# SPDX-License-Identifier: LGPL-2.1-or-later
# Proves that a prune or a merge that ends when qemu-img has just written a file's new parent into
# its head, or that has no room left at any write before or after that, loses no backup that is
# kept: not for those who read them then, and not for the next call.  And that the next call mends a
# file that an earlier version has left with a parent whose data it lacks.  And that backup-verify
# takes the work of a prune for no damage, and damage after a prune that was killed for no work.
. "$(dirname "$0")/lib.sh"
need qemu-img qemu-io qemu-nbd
proves_nothing_under thread
proves_nothing_under address

# What qemu-img writes into the qcow2 files of the test.  WRITES_END: "kill", it is killed with the
# prune at the first write into a head that holds another name than before; a number, from that
# write on there is no room; "wait", the first write waits for the file WRITES_GO.  WRITES_SEEN: a
# file to which it adds a byte for each write.
cat >"$tmp/writes.c" <<'END'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_int nr;

static int
is_image (int fd)
{
  char link[64], path[4096];
  snprintf (link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink (link, path, sizeof path - 1);
  if (n <= 0)
    return 0;
  path[n] = 0;
  return strstr (path, ".qcow2") != NULL;
}

/* Does the head of FD not name the file WRITES_OLD any more? */
static int
is_renamed (int fd, off_t at)
{
  static char head[65536];
  if (at != 0 || pread (fd, head, sizeof head, 0) <= 0)
    return 0;
  return memmem (head, sizeof head, getenv ("WRITES_OLD"), strlen (getenv ("WRITES_OLD"))) == NULL;
}

static ssize_t
write_it (int fd, const struct iovec *v, int n, off_t at)
{
  static ssize_t (*real) (int, const struct iovec *, int, off_t);
  const char *end = getenv ("WRITES_END"), *seen = getenv ("WRITES_SEEN");
  if (real == NULL)
    real = (ssize_t (*) (int, const struct iovec *, int, off_t)) dlsym (RTLD_NEXT, "pwritev64");
  if (!is_image (fd))
    return real (fd, v, n, at);
  int mine = atomic_fetch_add (&nr, 1);
  if (seen != NULL)
    {
      int log = open (seen, O_WRONLY | O_CREAT | O_APPEND, 0666);
      if (write (log, ".", 1) != 1)
        abort ();
      close (log);
    }
  if (end != NULL && *end >= '0' && *end <= '9' && mine >= atoi (end))
    {
      errno = ENOSPC;
      return -1;
    }
  while (end != NULL && strcmp (end, "wait") == 0 && access (getenv ("WRITES_GO"), F_OK) == -1)
    usleep (20000);
  ssize_t r = real (fd, v, n, at);
  if (end != NULL && strcmp (end, "kill") == 0 && is_renamed (fd, at))
    {
      kill (getppid (), SIGKILL);
      kill (getpid (), SIGKILL);
    }
  return r;
}

ssize_t
pwritev64 (int fd, const struct iovec *v, int n, off64_t at)
{
  return write_it (fd, v, n, at);
}
ssize_t
pwritev (int fd, const struct iovec *v, int n, off_t at)
{
  return write_it (fd, v, n, at);
}
ssize_t
pwrite64 (int fd, const void *p, size_t n, off64_t at)
{
  struct iovec v = { (void *) p, n };
  return write_it (fd, &v, 1, at);
}
ssize_t
pwrite (int fd, const void *p, size_t n, off_t at)
{
  return pwrite64 (fd, p, n, at);
}
END
cc=$(make_var CC)
# shellcheck disable=SC2086
$cc -shared -fPIC -O1 -w -o "$tmp/writes.so" "$tmp/writes.c" -ldl || fail "the shim does not build"

# Only `qemu-img rebase` that writes data goes through the shim.  With OLD_VERSION=1 it is called as
# earlier versions did, which did not flush each write.
real=$(command -v qemu-img)
mkdir "$tmp/bin"
cat >"$tmp/bin/qemu-img" <<END
#!/usr/bin/env bash
words=("\$@")
if [ "\${1:-}" = rebase ] && [[ " \$* " != *" -u "* ]]; then
  [ -z "\${OLD_VERSION:-}" ] || words=("\${words[@]//writethrough/writeback}")
  export LD_PRELOAD=$tmp/writes.so
fi
exec "$real" "\${words[@]}"
END
chmod +x "$tmp/bin/qemu-img"

shadow=$tmp/shadow repo=$tmp/r
mapfile -t names < <("$python" "$srcdir/tests/blackbox/make-repository.py" "$NBDMIRROR" "$tmp/all" \
  "$shadow" --size 4194304 --backups 5 --seed 7)
[ ${#names[@]} = 5 ] || fail "no repository was made"
kept=("${names[0]}" "${names[1]}" "${names[@]:3}")
same () { # same WHAT: each backup that is kept is what it was
  local name
  for name in "${kept[@]}"; do
    rm -f "$tmp/restored"
    nbdmirror restore "$repo" "$tmp/restored" --at "$name" 2>"$tmp/err" ||
      fail "$1: restore of $name: $? $(cat "$tmp/err")"
    cmp "$shadow/$name.vda" "$tmp/restored" || fail "$1: $name is not what was backed up"
  done
}
fresh () { rm -rf "$repo"; cp -a "$tmp/all" "$repo"; }
merge () { PATH=$tmp/bin:$PATH "$NBDMIRROR" backup-merge "$repo" "${names[2]}" >"$tmp/out" 2>&1; }
again () { # again WHAT: the next call goes on, and loses nothing
  has_to_exit 0 nbdmirror backup-prune "$repo" --keep-last 5
  [ ! -e "$repo/backups/${names[2]}.json" ] || fail "$1: the next prune has not gone on"
  same "$1, and the next prune"
  has_to_exit 0 nbdmirror backup-verify "$repo"
}
is_free () { qemu-img info "$repo/vda/${names[3]}-inc.qcow2" >"$tmp/info" 2>/dev/null; }
export WRITES_OLD="${names[2]}"

# ---- killed when the head has the new name -------------------------------------------------------
fresh
status=0
WRITES_END="kill" merge || status=$?
[ "$status" = 137 ] || fail "it was not killed: $status $(cat "$tmp/out")"
wait_for 20 is_free
grep -q "backing file: ${names[1]}" "$tmp/info" || fail "it was killed at another instant"
same "killed"
again "killed"

# ---- the same of an earlier version --------------------------------------------------------------
old_version () { # the file of backup 3 names that of 1, and lacks what 2 holds
  local status=0
  fresh
  OLD_VERSION=1 WRITES_END="kill" merge || status=$?
  [ "$status" = 137 ] || fail "it was not killed: $status $(cat "$tmp/out")"
  wait_for 20 is_free
  grep -q "backing file: ${names[1]}" "$tmp/info" || fail "it was killed at another instant"
}
old_version
again "an earlier version was killed"

# The next call drops the file that it has left, too: 4 is put on 1, or 3 is written into the full.
old_version
has_to_exit 0 nbdmirror backup-merge "$repo" "${names[3]}"
kept=("${names[0]}" "${names[1]}" "${names[4]}")
again "an earlier version was killed, and backup 3 merged"
old_version
has_to_exit 0 nbdmirror backup-prune "$repo" --keep-last 2
kept=("${names[3]}" "${names[4]}")
again "an earlier version was killed, and all before backup 3 pruned"
kept=("${names[0]}" "${names[1]}" "${names[@]:3}")

# ---- verified meanwhile --------------------------------------------------------------------------
fresh
export WRITES_GO=$tmp/go
PATH=$tmp/bin:$PATH WRITES_SEEN=$tmp/begun WRITES_END="wait" \
  spawn merge nbdmirror backup-merge "$repo" "${names[2]}"
wait_for 20 test -s "$tmp/begun"
has_to_exit 0 nbdmirror backup-verify "$repo"
for name in "${names[@]:3}"; do
  grep -q "$name of 'vda' was not looked at: .* by a prune" "$tmp/err" || fail "$(cat "$tmp/err")"
done
[ "$(grep -c ': good$' "$tmp/out")" = 2 ] || fail "not all others are good: $(cat "$tmp/out")"
has_to_exit 1 nbdmirror backup-verify "$repo" --at "${names[3]}"
! grep -q "there is no backup" "$tmp/err" || fail "$(cat "$tmp/err")"
touch "$WRITES_GO"
ends_well merge
has_to_exit 0 nbdmirror backup-verify "$repo"
[ "$(grep -c ': good$' "$tmp/out")" = 4 ] || fail "not all are good: $(cat "$tmp/out")"

fresh
status=0
WRITES_END="kill" merge || status=$?
[ "$status" = 137 ] || fail "it was not killed: $status $(cat "$tmp/out")"
wait_for 20 is_free
has_to_exit 0 nbdmirror backup-verify "$repo"
printf x | dd of="$repo/vda/${names[4]}-inc.qcow2" bs=1 seek=300000 conv=notrunc status=none
has_to_exit 5 nbdmirror backup-verify "$repo"
# A backup of the disk that runs has its lock, and changes none of these files.
random_disk "$tmp/vda" 4M
start_server vda "$tmp/vda"
spawn backup nbdmirror backup "${control[vda]}" "$repo" --disk-name "${control[vda]}=vda" \
  --before-hold-exec "touch '$tmp/at-hold'
  until [ -e '$tmp/verified' ] || [ ! -d '$tmp' ]; do sleep 0.05; done"
wait_for 20 test -e "$tmp/at-hold"
has_to_exit 5 nbdmirror backup-verify "$repo"
touch "$tmp/verified"
ends_well backup

# ---- killed when the manifest of a backup that became full has been written ----------------------
fresh
has_to_exit 0 nbdmirror backup-prune "$repo" --keep-last 2
[ ! -e "$repo/vda/${names[3]}-inc.qcow2" ] || fail "it did not become the full one"
cp "$repo/vda/${names[4]}-inc.qcow2" "$repo/vda/${names[3]}-inc.qcow2"
has_to_exit 0 nbdmirror backup-prune "$repo" --keep-last 1
for file in "$repo"/vda/*.qcow2; do
  grep -qF "\"vda/${file##*/}\"" "$repo"/backups/*.json || fail "$file is nobody's"
done

# ---- no room at any write ------------------------------------------------------------------------
fresh
WRITES_SEEN=$tmp/seen merge || fail "merge: $(cat "$tmp/out")"
same "merged"
count=$(stat -c %s "$tmp/seen")
note "qemu-img writes $count times"
[ "$count" -ge 4 ] || fail "the shim sees too little"
for ((i = 0; i < count; i++)); do
  fresh
  ! WRITES_END=$i merge || fail "no room at write $i was not noticed"
  same "no room at write $i"
  again "no room at write $i"
done
