/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The private directory of a receive server.  See server.h.  The server inherits its lock.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/private-dir.h"
#include "cmd/cmd.h"
#include "cmd/receive/server.h"

#define PID_FILE "nbdkit.pid"

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

static bool
clear (int fd, const char *path)
{
  if (names_a_server (fd, path))
    return false;
  unlinkat (fd, PID_FILE, 0);
  return true;
}

int
receive_dir_make (struct receive_server *s)
{
  static const struct private_dir_kind kind = { "nbdmirror-receive-", clear };

  s->dir_fd = private_dir_make (&kind, s->dir);
  if (s->dir_fd != -1)
    return 0;
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
