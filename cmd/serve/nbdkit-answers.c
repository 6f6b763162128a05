/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See nbdkit-answers.h.  The numbers are those of the NBD protocol.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "cmd/serve/nbdkit-answers.h"

#define LOOK_MS 50     /* how often to look whether the server has ended */
#define LEAVE_MS 1000  /* for the server to close the connection */
#define GREETING 18    /* "NBDMAGIC", "IHAVEOPT" and flags, but with --oldstyle */
#define ABORT_BYTES 20 /* our flags, and the option NBD_OPT_ABORT without data */

/* Has it ended?  It is nobody's child by now, and in a container nobody may care for what has ended
 * and is left in the table of processes. */
static bool
has_ended (pid_t server)
{
  char path[32], line[512];
  snprintf (path, sizeof path, "/proc/%ld/stat", (long)server);
  CLEANUP_FD int fd = open (path, O_RDONLY | O_CLOEXEC);
  ssize_t n = fd == -1 ? -1 : read (fd, line, sizeof line - 1);

  if (n <= 0)
    return kill (server, 0) == -1 && errno == ESRCH;
  line[n] = '\0';
  const char *name_end = strrchr (line, ')'); /* the name may hold anything */
  return name_end != NULL
         && (strncmp (name_end, ") Z", 3) == 0 || strncmp (name_end, ") X", 3) == 0);
}

/* Wait until the server has closed the connection. */
static void
wait_for_close (int fd)
{
  uint64_t end = clock_ms () + LEAVE_MS, now;
  struct pollfd pfd = { .fd = fd, .events = POLLIN };
  char byte[64];

  while ((now = clock_ms ()) < end && poll (&pfd, 1, (int)(end - now)) >= 0)
    if (pfd.revents != 0 && recv (fd, byte, sizeof byte, MSG_DONTWAIT) <= 0)
      return;
}

static void
say_goodbye (int fd)
{
  static const uint8_t goodbye[ABORT_BYTES]
      = { 0, 0, 0, 1, 'I', 'H', 'A', 'V', 'E', 'O', 'P', 'T', 0, 0, 0, 2 };
  char greeting[GREETING];

  ssize_t n = recv (fd, greeting, sizeof greeting, MSG_WAITALL);
  if (n == sizeof greeting && memcmp (greeting + 8, "IHAVEOPT", 8) == 0
      && send (fd, goodbye, sizeof goodbye, MSG_NOSIGNAL) == sizeof goodbye)
    wait_for_close (fd);
}

enum nbdkit_answer
nbdkit_answers (const char *socket, pid_t server, int timeout_ms)
{
  uint64_t end = clock_ms () + (uint64_t)timeout_ms;
  CLEANUP_FD int fd = fd_connect (socket);
  struct pollfd pfd = { .fd = fd, .events = POLLIN };
  bool closed = fd == -1;
  char byte;

  while (clock_ms () < end) {
    if (has_ended (server))
      return NBDKIT_ENDED;
    if (closed)
      clock_sleep_ms (LOOK_MS);
    else if (poll (&pfd, 1, LOOK_MS) == 1 && recv (fd, &byte, 1, MSG_PEEK) == 1) {
      say_goodbye (fd);
      return NBDKIT_ANSWERS;
    } else if (pfd.revents != 0) {
      /* It ends, or it turns us away: then it goes on to live. */
      closed = true;
      end = clock_ms () + LEAVE_MS < end ? clock_ms () + LEAVE_MS : end;
    }
  }
  return closed && fd != -1 ? NBDKIT_ANSWERS : NBDKIT_SILENT;
}
