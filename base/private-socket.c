/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See private-socket.h.
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/private-socket.h"

#define NAME "nbd"

static bool
clear (int fd, const char *path)
{
  (void)path;
  unlinkat (fd, NAME, 0);
  return true;
}

int
private_socket_listen (struct private_socket *s)
{
  static const struct private_dir_kind kind = { "nbdmirror-nbd-", clear };
  struct sockaddr_un addr = { .sun_family = AF_UNIX };

  s->lock = private_dir_make (&kind, s->dir);
  if (s->lock == -1) {
    s->dir[0] = '\0';
    return -1;
  }
  snprintf (s->path, sizeof s->path, "%s/" NAME, s->dir);
  strcpy (addr.sun_path, s->path);
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd != -1
      && (bind (fd, (struct sockaddr *)&addr, sizeof addr) == -1 || listen (fd, SOMAXCONN) == -1))
    fd_close (&fd);
  if (fd == -1)
    private_socket_remove (s);
  return fd;
}

void
private_socket_remove (struct private_socket *s)
{
  int saved = errno;

  if (s->dir[0] == '\0')
    return;
  unlink (s->path);
  rmdir (s->dir);
  fd_close (&s->lock);
  s->dir[0] = s->path[0] = '\0';
  errno = saved;
}
