/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Binding the control socket.
 *
 * Mode: Linux creates the socket's inode with the mode of the socket itself less the umask, so
 * fchmod() before bind() gives 0600 from the first instant, without touching the umask (which
 * the whole process shares).  Moreover nobody can connect before listen(), and the mode is
 * checked before that.
 *
 * A stale socket: bind() says EADDRINUSE for any existing path.  If a connection is refused, no
 * process listens there and the path is unlinked.  Two servers that do this at the same time
 * could unlink each other's new socket, so the sequence runs under flock() on the directory.  The
 * server waits for the lock only for a short time, and then goes on without it: whoever keeps the
 * lock cannot keep a server from starting.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "control/listen.h"
#include "control/wire.h"

#define LOCK_WAIT_MS 1000
#define LOCK_LOOK_MS 10 /* how often to look whether the lock is free */
#define BIND_TRIES 3
#define BACKLOG 64

static int
lock_directory (const char *path)
{
  uint64_t until = clock_ms () + LOCK_WAIT_MS;
  char *copy = strdup (path);

  if (copy == NULL)
    return -1;
  int fd = open (dirname (copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  free (copy);
  if (fd == -1)
    return -1;
  while (flock (fd, LOCK_EX | LOCK_NB) == -1) {
    if ((errno != EWOULDBLOCK && errno != EINTR) || clock_ms () >= until) {
      close (fd);
      return -1;
    }
    clock_sleep_ms (LOCK_LOOK_MS);
  }
  return fd;
}

/* PATH exists: unlink it if it is a socket nobody listens on. */
static int
remove_stale (const char *path, const struct sockaddr_un *sa, char **error)
{
  struct stat st;

  if (lstat (path, &st) == -1) {
    if (errno == ENOENT)
      return 0; /* its owner removed it meanwhile */
    return text_error (error, "%s: %s", path, strerror (errno));
  }
  if (!S_ISSOCK (st.st_mode)) {
    return text_error (error, "%s: exists and is not a socket; not replaced", path);
  }
  int sock = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (sock == -1) {
    return text_error (error, "%s: socket: %s", path, strerror (errno));
  }
  int r = connect (sock, (const struct sockaddr *)sa, sizeof *sa);
  int err = errno;
  close (sock);
  if (r == 0 || err == EAGAIN) {
    return text_error (error, "%s: another server is listening on this control socket", path);
  }
  if (err == ENOENT)
    return 0;
  if (err != ECONNREFUSED) {
    return text_error (error, "%s: cannot find out whether the socket is in use: %s", path,
                       strerror (err));
  }
  if (unlink (path) == -1 && errno != ENOENT) {
    return text_error (error, "%s: cannot remove the stale socket: %s", path, strerror (errno));
  }
  return 0;
}

static int
bind_path (int sock, const char *path, const struct sockaddr_un *sa, char **error)
{
  for (int i = 0; i < BIND_TRIES; i++) {
    if (bind (sock, (const struct sockaddr *)sa, sizeof *sa) == 0)
      return 0;
    if (errno != EADDRINUSE)
      break;
    if (remove_stale (path, sa, error) == -1)
      return -1;
    errno = EADDRINUSE;
  }
  return text_error (error, "%s: cannot create the control socket: %s", path, strerror (errno));
}

/* The socket was bound: note its inode, and see that nobody else may connect. */
static int
check_inode (const char *path, struct listen_inode *inode, char **error)
{
  struct stat st;

  if (lstat (path, &st) == -1) {
    return text_error (error, "%s: vanished while it was created: %s", path, strerror (errno));
  }
  inode->dev = st.st_dev;
  inode->ino = st.st_ino;
  /* A umask that takes bits from the owner, or a file system with ideas of its own. */
  if (S_ISSOCK (st.st_mode) && (st.st_mode & 07777) != 0600
      && (chmod (path, 0600) == -1 || lstat (path, &st) == -1 || (st.st_mode & 0177) != 0)) {
    text_error (error, "%s: cannot be given the mode 0600", path);
    control_unlisten (path, inode);
    return -1;
  }
  return 0;
}

int
control_listen (const char *path, struct listen_inode *inode, char **error)
{
  struct sockaddr_un sa;

  if (wire_address (path, &sa, error) == -1)
    return -1;
  int sock = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (sock == -1 || fchmod (sock, 0600) == -1) {
    text_error (error, "%s: socket: %s", path, strerror (errno));
    fd_close (&sock);
    return -1;
  }
  int lock = lock_directory (path);
  int r = bind_path (sock, path, &sa, error);
  if (r == 0)
    r = check_inode (path, inode, error);
  if (r == 0 && listen (sock, BACKLOG) == -1) {
    text_error (error, "%s: listen: %s", path, strerror (errno));
    control_unlisten (path, inode);
    r = -1;
  }
  fd_close (&lock);
  if (r == -1) {
    close (sock);
    return -1;
  }
  return sock;
}

void
control_unlisten (const char *path, const struct listen_inode *inode)
{
  struct stat st;

  if (lstat (path, &st) == 0 && st.st_dev == inode->dev && st.st_ino == inode->ino)
    unlink (path);
}
