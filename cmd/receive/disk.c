/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Preparing the disk of `receive`.  See disk.h.
 *
 * There are two locks, on bytes far behind any disk's end.  The first belongs to the open file
 * description, so the servers that inherit the descriptor hold it too: only who has it writes here.
 * The second belongs to the process, so that others can ask for its id; only a session of --stdio
 * takes it.  Such a session may not notice that its network connection is dead, so the next session
 * ends it (R12: when the process is gone, so are its requests).
 *
 * Our other programs look at neither.  They look at flock() and at QEMU's locks
 * (mirror/endpoint/file-open.c), so the open file description is locked with flock() as well, where
 * the server does nothing of the kind itself.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>
#include <jansson.h>

#include "base/child.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/range-lock.h"
#include "base/stop-signals.h"
#include "base/text.h"
#include "base/tracked-mark.h"
#include "cmd/cmd.h"
#include "cmd/image.h"
#include "cmd/receive/disk.h"
#include "cmd/serve/paths.h"
#include "cmd/units.h"
#include "control/receive-exports.h"
#include "mirror/endpoint/file.h"

#define LOCK_SERVER ((off_t)1 << 62)
#define LOCK_SESSION (LOCK_SERVER + 1)
#define DISPLACE_MS 10000
#define DISPLACE_POLL_MS 20
#define OTHERS_MS 200
#define SERVED_MS 2000 /* a server that was told to end needs a moment */
#define PIECE (UINT64_C (1) << 30)

/* ---- is it possible? ------------------------------------------------------------------------- */

static int
check_folder (const struct receive_disk *d, char *folder)
{
  CLEANUP_TEXT char *copy = text_copy (d->name);
  struct stat st;
  int r = EXIT_ERROR;

  snprintf (folder, PATH_MAX, "%s", dirname (copy));
  if (stat (folder, &st) == -1)
    cmd_say ("%s: the directory %s: %s", d->name, folder, strerror (errno));
  else if (!S_ISDIR (st.st_mode))
    cmd_say ("%s: %s is no directory", d->name, folder);
  else
    r = EXIT_DONE;
  return r;
}

/* Is there room for the whole disk?  HAVE is what the file takes up already. */
static int
check_room (const struct receive_disk *d, const char *folder, uint64_t have)
{
  char need[UNITS_BUF], left[UNITS_BUF];
  struct statvfs vfs;

  if (statvfs (folder, &vfs) == -1) {
    cmd_say ("%s: %s: %s", d->name, folder, strerror (errno));
    return EXIT_ERROR;
  }
  uint64_t room = (uint64_t)vfs.f_bavail * vfs.f_frsize + have;
  if (d->size <= room)
    return EXIT_DONE;
  units_format_size (need, d->size);
  units_format_size (left, room);
  if (d->overcommit && !d->preallocate) {
    cmd_warning ("%s: the disk may grow to %s, and there is room for %s", d->name, need, left);
    return EXIT_DONE;
  }
  cmd_say ("%s: no room: the disk has %s, and %s has %s left%s", d->name, need, folder, left,
           d->preallocate ? "" : " (--overcommit: never mind, it will not fill up)");
  return EXIT_REFUSED;
}

static int
check_existing (const struct receive_disk *d, const struct stat *st)
{
  bool device = S_ISBLK (st->st_mode);

  if (!S_ISREG (st->st_mode) && !device) {
    cmd_say ("%s: neither a regular file nor a block device", d->name);
    return EXIT_ERROR;
  }
  if (access (d->name, d->read_only ? R_OK : R_OK | W_OK) == -1) {
    cmd_say ("%s: %s", d->name, strerror (errno));
    return EXIT_ERROR;
  }
  if (d->resume || d->overwrite || d->read_only || (!device && st->st_size == 0))
    return EXIT_DONE;
  cmd_say ("%s: %s: --overwrite gives up what is there, --resume goes on with it", d->name,
           device ? "a block device, which may hold anything" : "exists and is not empty");
  return EXIT_REFUSED;
}

static int
check_backing (struct receive_disk *d)
{
  struct stat st;

  if (d->backing == NULL)
    return EXIT_DONE;
  if (stat (d->backing, &st) == -1 || access (d->backing, R_OK) == -1) {
    cmd_say ("--backing %s: %s", d->backing, strerror (errno));
    return EXIT_ERROR;
  }
  /* The name decides, never the contents: a guest could have written them. */
  size_t len = strlen (d->backing);
  if (d->backing_format == NULL)
    d->backing_format = len > 6 && strcmp (d->backing + len - 6, ".qcow2") == 0 ? "qcow2" : "raw";
  return EXIT_DONE;
}

/* ---- the lock -------------------------------------------------------------------------------- */

/* Does another program lock a part of it, as QEMU does with an image that it has open?  A qemu-nbd
 * of an earlier server may have it for a moment yet, so look again for LIMIT_MS. */
static bool
is_locked_by_others (int fd, int limit_ms)
{
  for (int waited = 0; waited < limit_ms; waited += DISPLACE_POLL_MS) {
    if (!range_is_locked (fd, 0, LOCK_SERVER))
      return false;
    clock_sleep_ms (DISPLACE_POLL_MS);
  }
  return true;
}

/* Does the server tell other programs by a lock that it has the disk open?  qemu-nbd does.  So does
 * the mirror filter, and with a state file it must be the only one. */
static bool
server_locks (const struct receive_disk *d)
{
  struct stat st;

  return d->qcow2 || (d->tracked_directly && fstat (d->fd, &st) == 0 && S_ISREG (st.st_mode));
}

/* Let other programs know that the disk has a server.  Where a server of ours, or QEMU, has it open
 * already, a phrase that says so, else NULL. */
static const char *
claim (const struct receive_disk *d)
{
  const char *who = file_used_by (d->path);

  if (who == NULL && !server_locks (d) && flock (d->fd, LOCK_SH | LOCK_NB) == -1
      && errno == EWOULDBLOCK)
    who = "another program, as its lock says";
  return who;
}

/* The same, where who has it may end soon. */
static const char *
claim_soon (const struct receive_disk *d)
{
  const char *who = claim (d);

  for (int waited = 0; who != NULL && waited < SERVED_MS; waited += DISPLACE_POLL_MS) {
    clock_sleep_ms (DISPLACE_POLL_MS);
    who = claim (d);
  }
  return who;
}

/* Take the lock that tells the id of this process.  It is shared, because NFS makes claim()'s
 * flock() a shared lock of all bytes, which belongs to the open file description. */
static bool
lock_session (int fd)
{
  struct flock fl = range_of (LOCK_SESSION, 1);

  fl.l_type = F_RDLCK;
  return fcntl (fd, F_SETLK, &fl) == 0;
}

/* The process of a session of --stdio, or 0. */
static pid_t
session_process (int fd)
{
  struct flock fl = range_of (LOCK_SESSION, 1);

  return fcntl (fd, F_GETLK, &fl) == 0 && fl.l_type != F_UNLCK && fl.l_pid > 0 ? fl.l_pid : 0;
}

/* End the session that has the lock, and wait for its end, or until a signal comes.  The process
 * that holds the lock is asked for each time, so a signal never goes to another process that got
 * the same number. */
static bool
displace_session (int fd)
{
  pid_t told = 0;

  for (int waited = 0; waited < DISPLACE_MS && !stop_signals_pending ();
       waited += DISPLACE_POLL_MS) {
    if (range_lock (fd, LOCK_SERVER, 1))
      return true;
    pid_t pid = session_process (fd);
    if (pid != 0 && pid != told) {
      if (kill (pid, SIGTERM) == -1 && errno == EPERM)
        return false;
      told = pid;
    } else if (pid == 0 && told == 0)
      return false;
    clock_sleep_ms (DISPLACE_POLL_MS);
  }
  return false;
}

static int
lock_disk (struct receive_disk *d)
{
  if (!range_lock (d->fd, LOCK_SERVER, 1)) {
    if (!range_is_taken (errno)) {
      cmd_say ("%s: cannot be locked: %s", d->name, strerror (errno));
      return EXIT_ERROR;
    }
    if (!d->displace || !displace_session (d->fd)) {
      pid_t pid = session_process (d->fd);
      if (pid != 0)
        cmd_say ("%s: in use by a mirror session (nbdmirror receive --stdio, process %ld)", d->name,
                 (long)pid);
      else
        cmd_say ("%s: in use: another nbdmirror receive serves it", d->name);
      return EXIT_REFUSED;
    }
  }
  if (is_locked_by_others (d->fd, OTHERS_MS)) {
    cmd_say ("%s: in use: another program has locked it (QEMU locks the images that it has open)",
             d->name);
    return EXIT_REFUSED;
  }
  const char *who = d->read_only ? NULL : claim_soon (d);
  if (who != NULL) {
    cmd_say ("%s: in use by %s: end it first", d->name, who);
    return EXIT_REFUSED;
  }
  if (d->displace && !lock_session (d->fd))
    cmd_warning ("%s: cannot be locked for this process: %s", d->name, strerror (errno));
  return EXIT_DONE;
}

/* ---- making it ------------------------------------------------------------------------------- */

static int
failed (const struct receive_disk *d, const char *what)
{
  int err = errno;

  cmd_say ("%s: %s: %s", d->name, what, strerror (err));
  return err == ENOSPC || err == EFBIG ? EXIT_REFUSED : EXIT_ERROR;
}

static int
given_up (const struct receive_disk *d)
{
  cmd_say ("%s: given up", d->name);
  return EXIT_CANCELLED;
}

/* A signal that ends us, which is blocked, may have ended qemu-img as well: a terminal sends it to
 * both. */
static int
qemu_img_failed (const struct receive_disk *d, const char *what)
{
  if (stop_signals_pending ())
    return given_up (d);
  cmd_say ("%s: qemu-img %s", d->name, what);
  return EXIT_ERROR;
}

/* The disk has BYTES.  Are they as many as the user wants? */
static int
take_size (struct receive_disk *d, uint64_t bytes)
{
  if (d->have_size && bytes < d->size) {
    cmd_say ("%s: too small: %" PRIu64 " bytes, %" PRIu64 " are needed", d->name, bytes, d->size);
    return EXIT_REFUSED;
  }
  d->size = bytes;
  return EXIT_DONE;
}

static int
measure_raw (struct receive_disk *d)
{
  off_t size = lseek (d->fd, 0, SEEK_END);

  return size == -1 ? failed (d, "its size") : take_size (d, (uint64_t)size);
}

/* A signal, which is blocked, ends that between two pieces. */
static int
preallocate (struct receive_disk *d)
{
  for (uint64_t at = 0, n; at < d->size; at += n) {
    n = d->size - at < PIECE ? d->size - at : PIECE;
    if (stop_signals_pending ())
      return given_up (d);
    if ((errno = posix_fallocate (d->fd, (off_t)at, (off_t)n)) != 0)
      return failed (d, "cannot be preallocated");
  }
  return EXIT_DONE;
}

static int
make_raw (struct receive_disk *d, bool device)
{
  if (device)
    return measure_raw (d);
  if (ftruncate (d->fd, 0) == -1 || ftruncate (d->fd, (off_t)d->size) == -1)
    return failed (d, "cannot be given its size");
  return d->preallocate ? preallocate (d) : EXIT_DONE;
}

static int
make_qcow2 (struct receive_disk *d)
{
  char size[32], *backing = NULL;
  const char *words[20];
  unsigned n = 0;

  words[n++] = "qemu-img";
  words[n++] = "create";
  words[n++] = "-q";
  words[n++] = "-f";
  words[n++] = "qcow2";
  if (d->preallocate) {
    words[n++] = "-o";
    words[n++] = "preallocation=falloc";
  }
  if (d->backing != NULL) {
    backing = realpath (d->backing, NULL); /* qemu-img takes it as relative to the new image */
    if (backing == NULL)
      return failed (d, d->backing);
    words[n++] = "-F";
    words[n++] = d->backing_format;
    words[n++] = "-b";
    words[n++] = backing;
  }
  words[n++] = d->path;
  snprintf (size, sizeof size, "%" PRIu64, d->size);
  if (d->have_size)
    words[n++] = size;
  words[n] = NULL;
  int r = child_run (words, NULL);
  free (backing);
  if (r == 0)
    return EXIT_DONE;
  return qemu_img_failed (d, r == -1 ? "create cannot be run: is qemu-utils installed?"
                                     : "create failed");
}

static int
measure_qcow2 (struct receive_disk *d)
{
  const char *words[] = { "qemu-img", "info", "--output=json", "-f", "qcow2", d->path, NULL };
  char *out = NULL;

  int r = child_run (words, &out);
  json_t *info = r == 0 && out != NULL ? json_loads (out, 0, NULL) : NULL;
  json_t *size = json_object_get (info, "virtual-size");
  bool good = json_is_integer (size);
  uint64_t bytes = good ? (uint64_t)json_integer_value (size) : 0;
  json_decref (info);
  free (out);
  return good ? take_size (d, bytes) : qemu_img_failed (d, "does not read it as qcow2");
}

/* Was it handed over to its guest?  The server's filter has recorded it
 * (nbd-plugin/receive/filter.c). */
static int
look_for_seal (struct receive_disk *d)
{
  char value;

  if (d->resume && fgetxattr (d->fd, RECEIVE_ATTRIBUTE, &value, 1) == 1)
    d->sealed = true;
  if (!d->sealed || !d->displace)
    return EXIT_DONE;
  cmd_say ("%s: sealed: it was handed over to its guest, and no mirror may write to it any more",
           d->name);
  return EXIT_REFUSED;
}

/* The user gives up what the disk holds, so the record of its seal goes too. */
static int
forget_seal (struct receive_disk *d)
{
  if (fremovexattr (d->fd, RECEIVE_ATTRIBUTE) == 0 || errno == ENODATA || errno == ENOTSUP
      || errno == EPERM)
    return EXIT_DONE;
  return failed (d, "that it was sealed cannot be forgotten");
}

/* ---- together -------------------------------------------------------------------------------- */

static int
open_disk (struct receive_disk *d, bool exists)
{
  int flags = (d->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY;
  struct stat st;

  d->fd = exists ? open (d->name, flags) : open (d->name, flags | O_CREAT | O_EXCL, 0644);
  if (d->fd == -1 || fstat (d->fd, &st) == -1)
    return failed (d, exists ? "cannot be opened" : "cannot be created");
  d->created = !exists;
  d->dev = st.st_dev;
  d->ino = st.st_ino;
  d->path = realpath (d->name, NULL);
  if (d->path == NULL)
    return failed (d, "its path");
  if (d->read_only)
    return EXIT_DONE;
  int r = lock_disk (d);
  if (r != EXIT_DONE) {
    d->created = false; /* whoever was quicker to lock it serves it */
    return r;
  }
  /* The server that had it before may have filled it since it was checked. */
  if (exists && (fstat (d->fd, &st) == -1 || (r = check_existing (d, &st)) != EXIT_DONE))
    return r != EXIT_DONE ? r : failed (d, "cannot be looked at");
  return EXIT_DONE;
}

static int
make_or_measure (struct receive_disk *d, bool go_on, bool device)
{
  int r = d->read_only ? EXIT_DONE : go_on ? look_for_seal (d) : forget_seal (d);

  if (r != EXIT_DONE)
    return r;
  /* The disk may have been a tracked one.  A state file knows nothing of what a mirror writes,
   * unless it is that of our own server. */
  if (!d->read_only && !(d->resume && d->tracked) && tracked_mark_remove (d->fd) == -1)
    return failed (d, "the mark of its state file cannot be removed");
  if (go_on)
    return d->qcow2 ? measure_qcow2 (d) : measure_raw (d);
  if (!d->qcow2)
    return make_raw (d, device);
  r = make_qcow2 (d);
  return r == EXIT_DONE ? measure_qcow2 (d) : r;
}

int
receive_disk_open (struct receive_disk *d)
{
  char folder[PATH_MAX];
  struct stat st = { 0 };
  bool go_on = d->resume || d->read_only;

  d->fd = -1;
  int r = check_folder (d, folder);
  if (r != EXIT_DONE || (r = check_backing (d)) != EXIT_DONE)
    return r;
  bool exists = stat (d->name, &st) == 0, device = exists && S_ISBLK (st.st_mode);
  /* A session over ssh comes back to a disk which its own first session has found to be raw. */
  bool comes_back = d->displace && !d->read_only;
  if (exists && go_on && !d->format_said && !comes_back
      && (r = image_refuse_container (d->name, "--format")) != EXIT_DONE)
    return r;
  if (!exists && errno != ENOENT)
    return failed (d, "cannot be looked at");
  if (exists && (r = check_existing (d, &st)) != EXIT_DONE)
    return r;
  if (!exists && go_on) {
    cmd_say ("%s: is not there, so there is nothing to go on with", d->name);
    return EXIT_ERROR;
  }
  if (!exists && access (folder, W_OK | X_OK) == -1) {
    cmd_say ("%s: no file can be made in %s: %s", d->name, folder, strerror (errno));
    return EXIT_ERROR;
  }
  if (!go_on && !(device && !d->qcow2) && !d->have_size && d->backing == NULL)
    return cmd_usage_error ("--size is missing: %s is a new disk", d->name);
  if (!go_on && !device && d->have_size
      && (r = check_room (d, folder, exists ? (uint64_t)st.st_blocks * 512 : 0)) != EXIT_DONE)
    return r;
  r = open_disk (d, exists);
  if (r != EXIT_DONE) {
    receive_disk_remove (d);
    receive_disk_close (d);
  }
  return r;
}

int
receive_disk_make (struct receive_disk *d)
{
  struct stat st;
  int r = fstat (d->fd, &st) == 0
              ? make_or_measure (d, d->resume || d->read_only, S_ISBLK (st.st_mode))
              : failed (d, "cannot be looked at");

  if (r != EXIT_DONE) {
    receive_disk_remove (d);
    receive_disk_close (d);
  }
  return r;
}

bool
receive_disk_wait_unused (const struct receive_disk *d, int limit_ms)
{
  return !is_locked_by_others (d->fd, limit_ms);
}

bool
receive_disk_is_there (const struct receive_disk *d)
{
  struct stat ours, its;

  return fstat (d->fd, &ours) == 0 && stat (d->path, &its) == 0
         && (S_ISBLK (ours.st_mode) ? S_ISBLK (its.st_mode) && its.st_rdev == ours.st_rdev
                                    : its.st_dev == ours.st_dev && its.st_ino == ours.st_ino);
}

bool
receive_disk_remove (struct receive_disk *d)
{
  struct stat st;

  if (!d->created || d->path == NULL || lstat (d->path, &st) == -1 || st.st_dev != d->dev
      || st.st_ino != d->ino)
    return false;
  if (unlink (d->path) == 0)
    return true;
  cmd_say ("%s: cannot be removed: %s", d->path, strerror (errno));
  return false;
}

void
receive_disk_close (struct receive_disk *d)
{
  fd_close (&d->fd);
  free (d->path);
  d->path = NULL;
}
