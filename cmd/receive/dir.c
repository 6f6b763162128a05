/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The private directory of a receive server.  See server.h.
 *
 * The lock belongs to the open file description, which the server inherits.  So a directory that
 * can be locked is in use by nobody any more: all its processes were killed.
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

#include "cmd/cmd.h"
#include "cmd/receive/server.h"

#define PARENT "/tmp"
#define PREFIX "nbdmirror-receive-"
#define RANDOM 6
#define TRIES 10
#define PID_FILE "nbdkit.pid"

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

/* The first SIZE bytes of a file. */
static ssize_t
read_file (int dir_fd, const char *name, char *text, size_t size)
{
  int fd = openat (dir_fd, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);

  if (fd == -1)
    return -1;
  ssize_t n = read (fd, text, size);
  close (fd);
  return n;
}

/* Is the process whose number is in the file one that was started for PATH?  It may be a server of
 * another version, which locks nothing. */
static bool
names_a_server (int dir_fd, const char *path)
{
  char text[32] = "", proc[48], words[8192];

  if (read_file (dir_fd, PID_FILE, text, sizeof text - 1) <= 0)
    return false;
  snprintf (proc, sizeof proc, "/proc/%ld/cmdline", strtol (text, NULL, 10));
  ssize_t n = read_file (AT_FDCWD, proc, words, sizeof words);
  return n > 0 && memmem (words, (size_t)n, path, strlen (path)) != NULL;
}

static void
remove_stale (void)
{
  DIR *dir = opendir (PARENT);
  struct dirent *entry;

  while (dir != NULL && (entry = readdir (dir)) != NULL) {
    char path[sizeof PARENT + sizeof PREFIX + RANDOM];

    if (strncmp (entry->d_name, PREFIX, strlen (PREFIX)) != 0
        || strlen (entry->d_name) != strlen (PREFIX) + RANDOM)
      continue;
    snprintf (path, sizeof path, "%s/%.*s", PARENT, (int)(strlen (PREFIX) + RANDOM), entry->d_name);
    int fd = lock_dir (path);
    if (fd == -1)
      continue;
    if (!names_a_server (fd, path)) {
      unlinkat (fd, PID_FILE, 0);
      rmdir (path); /* unless there is something in it that is not ours */
    }
    close (fd);
  }
  if (dir != NULL)
    closedir (dir);
}

int
receive_dir_make (struct receive_server *s)
{
  remove_stale ();
  for (int i = 0; i < TRIES; i++) {
    strcpy (s->dir, PARENT "/" PREFIX "XXXXXX");
    if (mkdtemp (s->dir) == NULL)
      break;
    s->dir_fd = lock_dir (s->dir);
    if (s->dir_fd != -1)
      return 0;
    rmdir (s->dir); /* another one has taken it for a stale one, or is about to */
  }
  cmd_say ("%s: %s", s->dir, strerror (errno));
  s->dir[0] = '\0';
  return -1;
}

void
receive_dir_remove (struct receive_server *s)
{
  if (s->dir[0] == '\0')
    return;
  unlinkat (s->dir_fd, PID_FILE, 0);
  rmdir (s->dir);
  close (s->dir_fd);
  s->dir[0] = '\0';
}
