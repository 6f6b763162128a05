/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See stopped-guest.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/text.h"
#include "cmd/adopt/stopped-guest.h"
#include "cmd/cmd.h"

#define PIPE_FD 3

static _Noreturn void
look_after (pid_t worker, void (*settle) (void *opaque), void *opaque)
{
  struct pollfd p = { .fd = PIPE_FD, .events = POLLIN };
  char byte;
  int r;

  setsid (); /* a Ctrl-C is for the worker */
  signal (SIGTERM, SIG_IGN);
  signal (SIGHUP, SIG_IGN);
  while ((r = poll (&p, 1, STOPPED_GUEST_LIMIT_MS)) == -1 && errno == EINTR)
    ;
  if (r == 0 && getppid () == worker) {
    cmd_warning ("the process that has stopped the guest takes too long: killing it");
    kill (worker, SIGKILL);
  }
  if (r == 0 || read (PIPE_FD, &byte, 1) != 1)
    settle (opaque);
  _exit (0);
}

int
stopped_guest_start (struct stopped_guest *s, void (*settle) (void *opaque), void *opaque,
                     char **error)
{
  pid_t worker = getpid ();
  int fds[2];

  if (pipe2 (fds, O_CLOEXEC) == -1)
    return text_error (error, "pipe: %s", strerror (errno));
  pid_t pid = fork ();
  if (pid == 0) {
    /* QEMU's monitor takes one client, so the worker's connections must end with it. */
    dup2 (fds[0], PIPE_FD);
    close_range (PIPE_FD + 1, ~0U, 0);
    look_after (worker, settle, opaque);
  }
  close (fds[0]);
  if (pid == -1) {
    close (fds[1]);
    return text_error (error, "fork: %s", strerror (errno));
  }
  *s = (struct stopped_guest){ .pid = pid, .fd = fds[1] };
  return 0;
}

void
stopped_guest_end (struct stopped_guest *s)
{
  if (s->pid == 0)
    return;
  fd_write_all (s->fd, "x", 1);
  fd_close (&s->fd);
  while (waitpid (s->pid, NULL, 0) == -1 && errno == EINTR)
    ;
  s->pid = 0;
}
