/* SPDX-License-Identifier: LGPL-2.1-or-later */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/private-dir.h"
#include "base/private-socket.h"
#include "tests/unit/unit.h"

/* A process that has a private socket in S, and waits to be killed. */
static pid_t
start (struct private_socket *s)
{
  int fds[2];

  cr_assert_eq (pipe (fds), 0);
  pid_t pid = fork ();
  cr_assert_neq (pid, -1);
  if (pid == 0) {
    if (private_socket_listen (s) == -1 || write (fds[1], s, sizeof *s) != sizeof *s)
      _exit (1);
    for (;;)
      pause ();
  }
  cr_assert_eq (read (fds[0], s, sizeof *s), (ssize_t)sizeof *s);
  close (fds[0]);
  close (fds[1]);
  return pid;
}

static void
end (pid_t pid)
{
  kill (pid, SIGKILL);
  cr_assert_eq (waitpid (pid, NULL, 0), pid);
}

static bool
exists (const char *path)
{
  return access (path, F_OK) == 0;
}

/* Proves: the next one removes what a killed process has left, and nothing of one that lives. */
Test (private_dir, left_over)
{
  struct private_socket killed = { .dir = "" }, lives = killed, next = killed;
  pid_t one = start (&killed), two = start (&lives);

  end (one);
  int fd = private_socket_listen (&next);
  cr_assert_neq (fd, -1, "%s", strerror (errno));
  cr_assert_not (exists (killed.dir), "%s is left", killed.dir);
  cr_assert (exists (lives.path), "%s is in use", lives.path);
  cr_assert (exists (next.path));
  end (two);

  errno = 77;
  private_socket_remove (&next);
  cr_assert_eq (errno, 77);
  cr_assert_eq (next.dir[0], '\0');
  private_socket_remove (&next); /* none */
  close (fd);
  fd = private_socket_listen (&next);
  cr_assert_not (exists (lives.dir));
  private_socket_remove (&next);
  close (fd);
}

/* Proves: a file that is not ours stays, and its directory. */
Test (private_dir, foreign_file)
{
  struct private_socket killed = { .dir = "" }, next = killed;
  char foreign[PRIVATE_DIR_SIZE + 16];
  pid_t pid = start (&killed);

  snprintf (foreign, sizeof foreign, "%s/foreign", killed.dir);
  close (open (foreign, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  end (pid);
  int fd = private_socket_listen (&next);
  cr_assert (exists (foreign));
  cr_assert_not (exists (killed.path));
  private_socket_remove (&next);
  close (fd);
  unlink (foreign);
  cr_assert_eq (rmdir (killed.dir), 0, "%s: %s", killed.dir, strerror (errno));
}
