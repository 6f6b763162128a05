/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Running other programs.  See run.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/child.h"

#define MAX_OUTPUT (1u << 20)

static void
default_signals (void)
{
  sigset_t none;

  sigemptyset (&none);
  for (int sig = 1; sig < NSIG; sig++)
    signal (sig, SIG_DFL);
  sigprocmask (SIG_SETMASK, &none, NULL);
}

/* Read all.  NULL if out of memory. */
static char *
read_all (int fd)
{
  size_t len = 0, size = 4096;
  char *text = malloc (size + 1);

  while (text != NULL && len < MAX_OUTPUT) {
    ssize_t n = read (fd, text + len, size - len);
    if (n == -1 && errno == EINTR)
      continue;
    if (n <= 0)
      break;
    len += (size_t)n;
    if (len == size) {
      char *more = realloc (text, (size *= 2) + 1);
      if (more == NULL) {
        free (text);
        return NULL;
      }
      text = more;
    }
  }
  if (text != NULL)
    text[len] = '\0';
  return text;
}

int
run_and_wait (const char *const *words, char **out)
{
  int fds[2] = { -1, -1 }, status;

  if (out != NULL && pipe2 (fds, O_CLOEXEC) == -1)
    return -1;
  pid_t pid = fork ();
  if (pid == 0) {
    int null = open ("/dev/null", O_RDWR | O_CLOEXEC);
    default_signals ();
    dup2 (null, STDIN_FILENO);
    dup2 (out != NULL ? fds[1] : STDERR_FILENO, STDOUT_FILENO);
    execvp (words[0], (char *const *)(uintptr_t)words);
    _exit (127);
  }
  if (out != NULL) {
    close (fds[1]);
    *out = pid == -1 ? NULL : read_all (fds[0]);
    close (fds[0]);
  }
  if (pid == -1)
    return -1;
  while (waitpid (pid, &status, 0) == -1 && errno == EINTR)
    ;
  if (WIFSIGNALED (status))
    return 128 + WTERMSIG (status);
  return WEXITSTATUS (status) == 127 ? -1 : WEXITSTATUS (status);
}

/* In the child. */
static void
become (char *const *words, const struct run_options *o, int err_fd)
{
  int fd = o->our_stdio ? -1 : open ("/dev/null", O_RDWR | O_CLOEXEC);

  default_signals ();
  if (o->end_with_us)
    prctl (PR_SET_PDEATHSIG, SIGKILL);
  if (fd >= 0) {
    dup2 (fd, STDIN_FILENO);
    dup2 (fd, STDOUT_FILENO);
  }
  for (int i = 0; i < RUN_KEEP; i++)
    if (o->keep[i] != -1)
      fcntl (o->keep[i], F_SETFD, 0);
  execvp (words[0], words);
  int err = errno;
  if (write (err_fd, &err, sizeof err) == -1)
    _exit (126);
  _exit (127);
}

pid_t
run_start (char *const *words, const struct run_options *o)
{
  int fds[2], err = 0;

  if (pipe2 (fds, O_CLOEXEC) == -1)
    return -1;
  pid_t pid = fork ();
  if (pid == 0)
    become (words, o, fds[1]);
  if (pid == -1)
    err = errno;
  close (fds[1]);
  ssize_t n = 0;
  /* Ends when exec closes the pipe, or with the reason why it failed. */
  while (pid != -1 && (n = read (fds[0], &err, sizeof err)) == -1 && errno == EINTR)
    ;
  close (fds[0]);
  if (pid != -1 && n != sizeof err)
    return pid;
  if (pid != -1)
    while (waitpid (pid, NULL, 0) == -1 && errno == EINTR)
      ;
  errno = err;
  return -1;
}
