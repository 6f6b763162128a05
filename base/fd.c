/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See fd.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/fd.h"

void
fd_close (int *fd)
{
  int saved = errno;

  if (*fd != -1)
    close (*fd);
  *fd = -1;
  errno = saved;
}

int
fd_close_on_exec (int fd, bool yes)
{
  return fcntl (fd, F_SETFD, yes ? FD_CLOEXEC : 0);
}

int
fd_write_all (int fd, const void *data, size_t len)
{
  const char *from = data;

  while (len > 0) {
    ssize_t n = write (fd, from, len);
    if (n == -1 && errno == EINTR)
      continue;
    if (n == -1)
      return -1;
    from += n;
    len -= (size_t)n;
  }
  return 0;
}

ssize_t
fd_send (int sock, const void *data, size_t len, int pass_fd, int flags)
{
  union {
    char buf[CMSG_SPACE (sizeof (int))];
    struct cmsghdr align;
  } control;
  struct iovec iov = { .iov_base = (void *)data, .iov_len = len };
  struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
  ssize_t n;

  if (pass_fd != -1) {
    memset (&control, 0, sizeof control);
    msg.msg_control = control.buf;
    msg.msg_controllen = sizeof control.buf;
    struct cmsghdr *c = CMSG_FIRSTHDR (&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN (sizeof pass_fd);
    memcpy (CMSG_DATA (c), &pass_fd, sizeof pass_fd);
  }
  do
    n = sendmsg (sock, &msg, flags | MSG_NOSIGNAL);
  while (n == -1 && errno == EINTR);
  return n;
}

ssize_t
fd_read_text (int fd, char *text, size_t size)
{
  size_t got = 0;

  while (got < size - 1) {
    ssize_t n = read (fd, text + got, size - 1 - got);
    if (n == -1 && errno == EINTR)
      continue;
    if (n == -1) {
      text[0] = '\0';
      return -1;
    }
    if (n == 0)
      break;
    got += (size_t)n;
  }
  text[got] = '\0';
  return (ssize_t)got;
}

int
fd_connect (const char *path)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };

  if (strlen (path) >= sizeof addr.sun_path) {
    errno = ENAMETOOLONG;
    return -1;
  }
  strcpy (addr.sun_path, path);
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd != -1 && connect (fd, (struct sockaddr *)&addr, sizeof addr) == -1)
    fd_close (&fd);
  return fd;
}

int
fd_wake_new (void)
{
  return eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
}

/* The only other error is EAGAIN: 2^64 - 2 wake-ups are unread, so the reader wakes anyway. */
void
fd_wake (int fd)
{
  int saved = errno;
  uint64_t one = 1;

  while (write (fd, &one, sizeof one) == -1 && errno == EINTR)
    ;
  errno = saved;
}

/* EAGAIN: it was not woken. */
void
fd_wake_clear (int fd)
{
  uint64_t ignored;

  while (read (fd, &ignored, sizeof ignored) == -1 && errno == EINTR)
    ;
}
