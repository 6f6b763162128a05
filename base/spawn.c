/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Starting a child.  See spawn.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/spawn.h"

#define POLL_MS 10

pid_t
spawn_child (const char *path, char *const argv[], char *const env[], int out_fd)
{
  posix_spawn_file_actions_t files;
  posix_spawnattr_t attr;
  sigset_t defaults, none;
  pid_t pid = -1;
  int r;

  posix_spawn_file_actions_init (&files);
  posix_spawnattr_init (&attr);
  sigemptyset (&none);
  sigemptyset (&defaults);
  sigaddset (&defaults, SIGPIPE); /* main() ignores it, and that would be inherited */
  posix_spawnattr_setsigdefault (&attr, &defaults);
  posix_spawnattr_setsigmask (&attr, &none);
  posix_spawnattr_setpgroup (&attr, 0);
  posix_spawnattr_setflags (&attr,
                            POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
  posix_spawn_file_actions_addopen (&files, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  if (out_fd == -1)
    posix_spawn_file_actions_addopen (&files, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
  else
    posix_spawn_file_actions_adddup2 (&files, out_fd, STDOUT_FILENO);
  r = posix_spawn (&pid, path, &files, &attr, argv, env);
  posix_spawnattr_destroy (&attr);
  posix_spawn_file_actions_destroy (&files);
  if (r != 0) {
    errno = r;
    return -1;
  }
  return pid;
}

bool
spawn_ended (pid_t pid, int timeout_ms, int *status)
{
  static const struct timespec nap = { 0, POLL_MS * 1000000L };
  int waited = 0;
  pid_t r;

  for (;;) {
    r = waitpid (pid, status, WNOHANG);
    if (r == pid)
      return true;
    if (r == -1 && errno != EINTR) {
      *status = 0; /* somebody else has reaped it */
      return true;
    }
    if (waited >= timeout_ms)
      return false;
    nanosleep (&nap, NULL);
    waited += POLL_MS;
  }
}
