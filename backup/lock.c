/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The locks of a repository.  See lock.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backup/lock.h"
#include "backup/repository.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/range-lock.h"
#include "base/text.h"

#define LOCK ".lock"
#define LOCK_PRUNE ".prune"
#define WAIT_MS 30000
#define LOOK_MS 50

char *
repository_host (void)
{
  char name[256] = "";

  if (gethostname (name, sizeof name - 1) == -1 || name[0] == '\0')
    return text_copy ("unknown");
  return text_copy (name);
}

char *
repository_host_id (void)
{
  char text[64];
  CLEANUP_FD int fd = open ("/etc/machine-id", O_RDONLY | O_CLOEXEC);

  if (fd == -1 || fd_read_text (fd, text, sizeof text) <= 0)
    return repository_host ();
  text[strcspn (text, "\n")] = '\0';
  return text_copy (text);
}

/* Tell people who has the lock. */
static void
sign (int fd)
{
  CLEANUP_TEXT char *host = repository_host (), *id = repository_host_id ();
  CLEANUP_TEXT char *text
      = text_printf ("process %ld on host %s (%s)\n", (long)getpid (), host, id);

  if (ftruncate (fd, 0) == 0)
    (void)(pwrite (fd, text, strlen (text), 0) == 0); /* it is only a note */
}

static int
busy (const char *what, int fd, char **error)
{
  char who[300] = "";

  if (lseek (fd, 0, SEEK_SET) == 0)
    fd_read_text (fd, who, sizeof who);
  who[strcspn (who, "\n")] = '\0';
  return text_error (error, "%s is being written to by %s", what,
                     who[0] != '\0' ? who : "another process");
}

/* Lock the file PATH, which stands for WHAT. */
static int
lock_file (const char *path, const char *what, uint64_t wait_ms, int *result, char **error)
{
  CLEANUP_FD int fd = open (path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
  uint64_t end = clock_ms () + wait_ms;

  if (fd == -1)
    return text_error (error, "%s: %s", path, strerror (errno));
  while (!range_lock (fd, 0, 0)) {
    if (!range_is_taken (errno))
      return text_error (error, "%s: cannot be locked: %s", path, strerror (errno));
    if (clock_ms () >= end)
      return busy (what, fd, error);
    clock_sleep_ms (LOOK_MS);
  }
  sign (fd);
  *result = fd;
  fd = -1;
  return 0;
}

static int
lock_disk (const struct repository *r, const char *disk, const char *name, int *fd, char **error)
{
  CLEANUP_TEXT char *path = text_printf ("%s/%s/%s", r->path, disk, name);
  CLEANUP_TEXT char *what = text_printf ("%s: disk '%s'", r->path, disk);

  return lock_file (path, what, 0, fd, error);
}

int
repository_lock (const struct repository *r, const char *disk, int *fd, char **error)
{
  if (disk != NULL)
    return lock_disk (r, disk, LOCK, fd, error);
  CLEANUP_TEXT char *path = repository_path (r, LOCK);
  CLEANUP_TEXT char *what = text_printf ("%s: the list of backups", r->path);
  return lock_file (path, what, WAIT_MS, fd, error);
}

int
repository_lock_prune (const struct repository *r, const char *disk, int *fd, char **error)
{
  return lock_disk (r, disk, LOCK_PRUNE, fd, error);
}

bool
repository_is_pruned (const struct repository *r, const char *disk)
{
  CLEANUP_TEXT char *path = text_printf ("%s/%s/" LOCK_PRUNE, r->path, disk);

  return !repository_wait_unused (path, 0);
}

bool
repository_wait_unused (const char *path, uint64_t limit_ms)
{
  CLEANUP_FD int fd = open (path, O_RDONLY | O_CLOEXEC);
  uint64_t end = clock_ms () + limit_ms;

  for (;;) {
    if (!range_is_locked (fd, 0, 0))
      return true;
    if (clock_ms () >= end)
      return false;
    clock_sleep_ms (LOOK_MS);
  }
}
