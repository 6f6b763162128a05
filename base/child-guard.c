/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See child-guard.h.
 *
 * The guard is a copy of a process with threads, so it makes system calls only.  It holds none of
 * our descriptors but two: the pipe, whose other end is in this process alone, and the server's
 * pidfd, which still means the server when its number has been given to another process.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/child-guard.h"

#define ALIVE_FD 0
#define SERVER_FD 1
#define PATIENCE_MS 5000 /* for the server to end by SIGTERM */

static void
end_server (void)
{
  struct pollfd pfd = { .fd = SERVER_FD, .events = POLLIN };

  syscall (SYS_pidfd_send_signal, SERVER_FD, SIGTERM, NULL, 0);
  if (poll (&pfd, 1, PATIENCE_MS) != 1)
    syscall (SYS_pidfd_send_signal, SERVER_FD, SIGKILL, NULL, 0);
}

static _Noreturn void
guard (int alive_fd, int server_fd, const char *socket, const char *dir)
{
  sigset_t all;
  char byte;
  ssize_t n;

  sigfillset (&all); /* a Ctrl-C is for the process that we wait for */
  sigprocmask (SIG_SETMASK, &all, NULL);
  setpgid (0, 0);
  /* Neither is below 3, but their places are taken one after the other. */
  if (dup2 (alive_fd, ALIVE_FD) == -1 || dup2 (server_fd, SERVER_FD) == -1)
    _exit (1);
  syscall (SYS_close_range, 2u, ~0u, 0);
  do
    n = read (ALIVE_FD, &byte, 1);
  while (n == -1 && errno == EINTR);
  if (n == 0) {
    end_server ();
    unlink (socket);
    rmdir (dir);
  }
  _exit (0);
}

/* A descriptor that is none of the first three, so that guard() can put others there. */
static int
move_up (int fd)
{
  int moved = fd == -1 ? -1 : fcntl (fd, F_DUPFD_CLOEXEC, 3);

  fd_close (&fd);
  return moved;
}

int
child_guard_start (struct child_guard *g, pid_t server, const char *socket, const char *dir)
{
  int fds[2] = { -1, -1 };

  *g = (struct child_guard){ .alive_fd = -1 };
  CLEANUP_FD int server_fd = move_up ((int)syscall (SYS_pidfd_open, server, 0));
  if (server_fd == -1 || pipe2 (fds, O_CLOEXEC) == -1)
    return errno;
  CLEANUP_FD int alive_fd = move_up (fds[0]);
  g->pid = alive_fd == -1 ? -1 : fork ();
  if (g->pid == 0)
    guard (alive_fd, server_fd, socket, dir);
  if (g->pid != -1) {
    g->alive_fd = fds[1];
    return 0;
  }
  int err = errno;
  g->pid = 0;
  close (fds[1]);
  return err;
}

void
child_guard_stop (struct child_guard *g)
{
  if (g->pid == 0)
    return;
  fd_write_all (g->alive_fd, "x", 1);
  fd_close (&g->alive_fd);
  while (waitpid (g->pid, NULL, 0) == -1 && errno == EINTR)
    ;
  g->pid = 0;
}
