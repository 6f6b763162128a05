/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The file CONTROL.worker.  See worker-lock.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "mirror/job/worker-lock.h"

#define POLL_MS 20
#define RECORD 64 /* bytes in the file, always: it never has to be cut */

static int
fail (struct worker_lock *l, const char *what, char **error)
{
  return text_error (error, "%s: cannot %s: %s", l->path, what, strerror (errno));
}

/* Beside the socket itself, not beside a link to it: whoever comes another way must find the same
 * file. */
static char *
lock_path (const char *control)
{
  char *real = realpath (control, NULL);
  char *path = text_printf ("%s.worker", real ? real : control);
  free (real);
  return path;
}

/* An open file that is there, or a new one.  -1 with errno. */
static int
open_file (struct worker_lock *l, const char *control)
{
  const int flags = O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY;
  struct stat st;
  int fd;

  /* Not O_CREAT at once: in a sticky directory it refuses a file of another owner, even to root. */
  l->left_behind = false;
  while ((fd = open (l->path, flags)) == -1 && errno == ENOENT) {
    fd = open (l->path, flags | O_CREAT | O_EXCL, 0600);
    if (fd != -1) {
      /* A worker of root's must not lock those of the server's own user out. */
      if (geteuid () == 0 && stat (control, &st) == 0 && fchown (fd, st.st_uid, st.st_gid) == -1)
        errno = 0; /* they will be told */
      return fd;
    }
    if (errno != EEXIST)
      return -1;
  }
  int err = errno;
  l->left_behind = fd != -1 || lstat (l->path, &st) == 0; /* also one that we cannot open */
  errno = err;
  if (fd != -1 && (fstat (fd, &st) == -1 || !S_ISREG (st.st_mode))) {
    close (fd);
    errno = EINVAL;
    return -1;
  }
  return fd;
}

static void
read_record (struct worker_lock *l, int fd)
{
  char text[RECORD + 1];
  long pid;
  ssize_t n = pread (fd, text, RECORD, 0);

  l->left_by_pid = 0;
  l->left_by[0] = '\0';
  text[n > 0 ? n : 0] = '\0';
  if (sscanf (text, "%ld %36s", &pid, l->left_by) >= 1)
    l->left_by_pid = (pid_t)pid;
}

static int
write_record (struct worker_lock *l, const char *instance, char **error)
{
  char text[RECORD + 1];

  snprintf (text, sizeof text, "%-15ld %-47.36s\n", (long)getpid (), instance);
  ssize_t n = pwrite (l->fd, text, RECORD, 0);
  if (n == RECORD)
    return 0;
  if (n != -1)
    errno = ENOSPC;
  return fail (l, "write", error);
}

/* Is FD still what stands at the path?  The one who held the lock may have removed the file. */
static bool
still_there (const struct worker_lock *l, int fd)
{
  struct stat a, b;
  return fstat (fd, &a) == 0 && lstat (l->path, &b) == 0 && a.st_dev == b.st_dev
         && a.st_ino == b.st_ino;
}

/* The lock is ours: note in the file who has it.  The rest of what it says stays, for now. */
static void
taken (struct worker_lock *l, int fd)
{
  char *ignored = NULL;

  if (l->left_behind)
    read_record (l, fd);
  l->fd = fd;
  if (write_record (l, l->left_by, &ignored) == -1)
    free (ignored); /* only a name would be missing in a message */
}

enum worker_lock_result
worker_lock_take (struct worker_lock *l, const char *control, int timeout_ms, char **error)
{
  uint64_t end = clock_ms () + (uint64_t)timeout_ms;

  *l = (struct worker_lock){ .path = lock_path (control), .fd = -1 };
  for (;;) {
    int fd = open_file (l, control);
    if (fd == -1) {
      fail (l, "open", error);
      return WORKER_LOCK_FAILED;
    }
    int err = flock (fd, LOCK_EX | LOCK_NB) == -1 ? errno : 0;
    if (err == 0 && still_there (l, fd)) {
      taken (l, fd);
      return WORKER_LOCK_HELD;
    }
    read_record (l, fd);
    close (fd);
    if (err != 0 && err != EWOULDBLOCK && err != EINTR) {
      if (!l->left_behind)
        unlink (l->path);
      errno = err;
      fail (l, "lock", error);
      return WORKER_LOCK_FAILED;
    }
    if (clock_ms () >= end)
      return WORKER_LOCK_BUSY;
    clock_sleep_ms (POLL_MS);
  }
}

bool
worker_lock_unknown_past (const struct worker_lock *l, const char *instance)
{
  return l->left_behind
         && (instance == NULL || l->left_by[0] == '\0' || strcmp (l->left_by, instance) != 0);
}

int
worker_lock_attached (struct worker_lock *l, const char *instance, char **error)
{
  if (l->fd == -1)
    return 0;
  return write_record (l, instance ? instance : "", error);
}

void
worker_lock_release (struct worker_lock *l, bool nothing_left)
{
  if (l->fd != -1) {
    if (nothing_left)
      unlink (l->path);
    close (l->fd);
  }
  l->fd = -1;
  text_free (l->path);
  l->path = NULL;
}
