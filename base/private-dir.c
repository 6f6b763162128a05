/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See private-dir.h.
 */

#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/private-dir.h"

#define PARENT "/tmp"
#define RANDOM 6
#define TRIES 10

/* Open PATH, a directory of our own, and lock it.  -1: it is in use, or none. */
static int
lock_dir (const char *path)
{
  struct stat ours, its;
  int fd = open (path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

  if (fd == -1)
    return -1;
  if (fstat (fd, &ours) == 0 && ours.st_uid == geteuid () && flock (fd, LOCK_EX | LOCK_NB) == 0
      && stat (path, &its) == 0 && its.st_ino == ours.st_ino && its.st_dev == ours.st_dev)
    return fd;
  close (fd);
  return -1;
}

static void
remove_stale (const struct private_dir_kind *kind)
{
  DIR *dir = opendir (PARENT);
  struct dirent *entry;
  size_t prefix = strlen (kind->prefix);

  while (dir != NULL && (entry = readdir (dir)) != NULL) {
    char path[PRIVATE_DIR_SIZE];

    if (strncmp (entry->d_name, kind->prefix, prefix) != 0
        || strlen (entry->d_name) != prefix + RANDOM)
      continue;
    snprintf (path, sizeof path, PARENT "/%.*s", (int)(prefix + RANDOM), entry->d_name);
    int fd = lock_dir (path);
    if (fd == -1)
      continue;
    if (kind->clear (fd, path))
      rmdir (path); /* unless there is something in it that is not ours */
    close (fd);
  }
  if (dir != NULL)
    closedir (dir);
}

int
private_dir_make (const struct private_dir_kind *kind, char path[PRIVATE_DIR_SIZE])
{
  remove_stale (kind);
  for (int i = 0; i < TRIES; i++) {
    snprintf (path, PRIVATE_DIR_SIZE, PARENT "/%sXXXXXX", kind->prefix);
    if (mkdtemp (path) == NULL)
      return -1;
    int fd = lock_dir (path);
    if (fd != -1)
      return fd;
    rmdir (path); /* another one has taken it for a stale one, or is about to */
  }
  errno = EBUSY;
  return -1;
}

void
private_dir_unlink (int fd, bool (*is_ours) (const char *name))
{
  int copy = openat (fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  DIR *dir = copy != -1 ? fdopendir (copy) : NULL;
  struct dirent *entry;

  while (dir != NULL && (entry = readdir (dir)) != NULL)
    if (is_ours (entry->d_name))
      unlinkat (fd, entry->d_name, 0);
  if (dir != NULL)
    closedir (dir);
  else if (copy != -1)
    close (copy);
}
