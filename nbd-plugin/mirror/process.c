/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Watching another process.  See process.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/fd.h"
#include "nbd-plugin/mirror/process.h"

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

void
process_init (struct process *p)
{
  p->pid = 0;
  p->fd = -1;
  p->start_time = 0;
}

/* The start time of PID, or 0 with errno if there is no such process any more. */
static unsigned long long
start_time (pid_t pid)
{
  char path[64], text[1024], state;
  unsigned long long t;

  snprintf (path, sizeof path, "/proc/%ld/stat", (long)pid);
  int fd = open (path, O_RDONLY | O_CLOEXEC);
  if (fd == -1)
    return 0;
  ssize_t n = fd_read_text (fd, text, sizeof text);
  close (fd);
  if (n <= 0) {
    errno = ESRCH;
    return 0;
  }
  const char *after_name = strrchr (text, ')'); /* the name may hold anything */
  if (after_name == NULL
      || sscanf (after_name + 1,
                 " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %llu",
                 &state, &t)
             != 2
      || state == 'Z' || state == 'X') {
    errno = ESRCH;
    return 0;
  }
  return t;
}

int
process_watch (struct process *p, pid_t pid)
{
  unsigned long long t = 0;
  int fd = (int)syscall (SYS_pidfd_open, pid, 0);

  if (fd == -1 && errno != ENOSYS)
    return -1;
  if (fd == -1 && (t = start_time (pid)) == 0)
    return -1;
  process_forget (p);
  p->pid = pid;
  p->fd = fd;
  p->start_time = t;
  return 0;
}

bool
process_ended (struct process *p)
{
  struct pollfd poll_fd = { .fd = p->fd, .events = POLLIN };
  bool runs;

  if (p->fd != -1)
    runs = poll (&poll_fd, 1, 0) != 1;
  else
    runs = p->start_time != 0 && start_time (p->pid) == p->start_time;
  if (!runs)
    process_forget (p);
  return !runs;
}

void
process_forget (struct process *p)
{
  fd_close (&p->fd);
  p->start_time = 0;
}
