/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the disk's file says after a hand-off.  See handed-over.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <nbdkit-filter.h>

#include "base/fd.h"
#include "base/text.h"
#include "control/receive-exports.h"
#include "nbd-plugin/mirror/filter.h"
#include "nbd-plugin/own-thread.h"
#include "nbd-plugin/standing-record.h"

/* The disk's file, if it is one whose bytes the guest sees; else -1. */
static int
disk_file (const struct mirror *m)
{
  int fd = m->persist.file.disk_fd;
  struct stat st;

  return fd != -1 && fstat (fd, &st) == 0 && S_ISREG (st.st_mode) ? fd : -1;
}

/* The same, or the file that holds the image.  *OPENED is then the caller's to close. */
static int
any_file (const struct mirror *m, int *opened)
{
  int fd = disk_file (m);

  if (fd == -1 && m->config.disk != NULL)
    fd = *opened = open (m->config.disk, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  return fd;
}

void
handed_over_forget_old (struct mirror *m)
{
  CLEANUP_FD int opened = -1;
  int fd = any_file (m, &opened);
  int err = fd != -1 ? standing_record_erase (fd) : 0;

  if (err != 0 && err != EROFS && err != EPERM && err != EACCES)
    nbdkit_error ("%s: that it stood at a checkpoint cannot be forgotten: %s", m->config.disk,
                  strerror (err));
}

static void
unseal (int fd)
{
  char value;

  if (fgetxattr (fd, RECEIVE_ATTRIBUTE, &value, 1) != 1)
    return;
  if (fremovexattr (fd, RECEIVE_ATTRIBUTE) == -1 || fsync (fd) == -1)
    nbdkit_error ("that this disk is not its guest's any more cannot be recorded in its file: %m");
}

/* "0": nobody knows whether it is durable, and `receive --resume` makes it so.  An fsync() here
 * would write all that the guest has written, while a client waits; without it, it is lost if the
 * power fails right after.  0 as well where it cannot be done at all, or where there is no room.
 * Else 0 or -1 with errno. */
static int
seal (int fd)
{
  struct stat st;

  if (fd == -1 || fstat (fd, &st) == -1 || !S_ISREG (st.st_mode)
      || fsetxattr (fd, RECEIVE_ATTRIBUTE, "0", 1, 0) == 0)
    return 0;
  if (errno == ENOSPC || errno == EDQUOT) {
    nbdkit_error ("that this disk is its guest's cannot be recorded in its file: %m");
    return 0;
  }
  return errno == ENOTSUP || errno == EROFS || errno == EPERM || errno == EACCES ? 0 : -1;
}

void
handed_over_unseal (struct mirror *m)
{
  CLEANUP_FD int opened = -1;
  int fd = any_file (m, &opened);

  if (fd != -1)
    unseal (fd);
}

static void
record (struct handed_over *h, int fd)
{
  int err = standing_record_write (fd, h->uuid);

  if (err == 0)
    atomic_store (&h->recorded, true);
  else {
    standing_record_erase (fd);
    nbdkit_error ("that this disk stands where its destination began cannot be recorded in its"
                  " file, so the way back will be a whole copy: %s",
                  err == ENOTSUP ? "its file system has no extended attributes" : strerror (err));
  }
}

static void *
run (void *opaque)
{
  struct mirror *m = opaque;
  int fd = disk_file (m);

  handed_over_unseal (m);
  if (fd != -1 && m->handed_over.uuid[0] != '\0')
    record (&m->handed_over, fd);
  return NULL;
}

void
handed_over_record (struct mirror *m, const char *uuid)
{
  struct handed_over *h = &m->handed_over;
  uint8_t bytes[16];

  if (h->thread_runs)
    return;
  bool good = uuid != NULL && uuid_parse (uuid, bytes);
  snprintf (h->uuid, sizeof h->uuid, "%s", good ? uuid : "");
  h->thread_runs = own_thread_start (&h->thread, run, m) == 0;
}

int
handed_over_take_back (struct mirror *m, char **error)
{
  struct handed_over *h = &m->handed_over;
  CLEANUP_FD int opened = -1;
  int fd = disk_file (m);

  handed_over_end (m);
  atomic_store (&h->recorded, false);
  int err = fd != -1 ? standing_record_erase (fd) : 0;
  if (err != 0)
    return text_error (error, "%s: that it stands at a checkpoint cannot be forgotten: %s",
                       m->config.disk, strerror (err));
  if (seal (any_file (m, &opened)) == -1)
    return text_error (error, "%s: that it is its guest's cannot be recorded in its file: %s",
                       m->config.disk, strerror (errno));
  return 0;
}

const char *
handed_over_look (const struct mirror *m)
{
  return atomic_load (&m->handed_over.recorded) ? m->handed_over.uuid : NULL;
}

void
handed_over_end (struct mirror *m)
{
  struct handed_over *h = &m->handed_over;

  if (h->thread_runs)
    pthread_join (h->thread, NULL);
  h->thread_runs = false;
}
