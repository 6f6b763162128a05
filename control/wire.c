/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Sockets of the control protocol; see wire.h.
 *
 * Which line does a descriptor belong to?  The kernel joins what several sendmsg() calls have sent,
 * so a large read may return lines A and B with one descriptor, and no way to tell whose it is.
 * Therefore we look first (MSG_PEEK), and read to the end of one line only.  So a sender that
 * passes the descriptor with any byte of its line is understood exactly.
 */

#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/text.h"
#include "control/wire.h"

/* Room for this many descriptors in one message; the kernel closes what does not fit. */
#define MAX_CMSG_FDS 4

int
wire_address (const char *path, struct sockaddr_un *sa, char **error)
{
  size_t len = strlen (path);

  memset (sa, 0, sizeof *sa);
  sa->sun_family = AF_UNIX;
  if (len == 0) {
    return text_error (error, "the path of the control socket is empty");
  }
  if (len >= sizeof sa->sun_path) {
    return text_error (error,
                       "%s: path too long for a unix socket: %zu bytes, at most %zu are possible",
                       path, len, sizeof sa->sun_path - 1);
  }
  memcpy (sa->sun_path, path, len + 1);
  return 0;
}

/* Keep the first descriptor if *GOT_FD is free, close the others. */
static void
take_fds (struct msghdr *msg, int *got_fd, bool *fd_lost)
{
  unsigned nr = 0;

  for (struct cmsghdr *c = CMSG_FIRSTHDR (msg); c != NULL; c = CMSG_NXTHDR (msg, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
      continue;
    size_t n = (c->cmsg_len - CMSG_LEN (0)) / sizeof (int);
    for (size_t i = 0; i < n; i++) {
      int fd;

      memcpy (&fd, CMSG_DATA (c) + i * sizeof fd, sizeof fd);
      nr++;
      if (*got_fd == -1)
        *got_fd = fd;
      else
        close (fd);
    }
  }
  if ((msg->msg_flags & MSG_CTRUNC) && nr == 0)
    *fd_lost = true;
}

ssize_t
wire_recv (int sock, void *buf, size_t size, int *got_fd, bool *fd_lost)
{
  union {
    char buf[CMSG_SPACE (MAX_CMSG_FDS * sizeof (int))];
    struct cmsghdr align;
  } control;
  struct iovec iov = { .iov_base = buf };
  struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
  ssize_t n;

  do
    n = recv (sock, buf, size, MSG_PEEK | MSG_DONTWAIT);
  while (n == -1 && errno == EINTR);
  if (n <= 0)
    return n;
  char *nl = memchr (buf, '\n', (size_t)n);
  iov.iov_len = nl != NULL ? (size_t)(nl - (char *)buf) + 1 : (size_t)n;
  msg.msg_control = control.buf;
  msg.msg_controllen = sizeof control.buf;
  do
    n = recvmsg (sock, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  while (n == -1 && errno == EINTR);
  if (n >= 0)
    take_fds (&msg, got_fd, fd_lost);
  return n;
}

ssize_t
wire_send (int sock, const void *buf, size_t len, int pass_fd)
{
  return fd_send (sock, buf, len, pass_fd, MSG_DONTWAIT);
}

json_t *
wire_text (const char *text)
{
  json_t *j = json_string (text);

  if (j != NULL)
    return j;
  char *copy = strdup (text);
  if (copy == NULL)
    return NULL;
  for (char *p = copy; *p != '\0'; p++) {
    if ((unsigned char)*p >= 0x80)
      *p = '?';
  }
  j = json_string (copy);
  free (copy);
  return j;
}

json_t *
wire_text_or_null (const char *text)
{
  json_t *o = text != NULL ? json_string (text) : NULL;
  return o != NULL ? o : json_null ();
}
