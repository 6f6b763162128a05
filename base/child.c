/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See child.h.  Between fork() and exec only calls are made that are safe in a signal handler,
 * because other threads of ours may have held locks.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/child.h"
#include "base/clock.h"
#include "base/fd.h"

#define MAX_OUTPUT (1u << 20)
#define POLL_MS 10
#define LISTEN_FD 3 /* SD_LISTEN_FDS_START, see sd_listen_fds(3) */

/* In the child.  A handler of ours that is called there would see a copy of our memory. */
static void
default_signals (void)
{
  struct sigaction hup;
  bool keep_hup = sigaction (SIGHUP, NULL, &hup) == 0 && hup.sa_handler == SIG_IGN;

  for (int sig = 1; sig < NSIG; sig++)
    if (sig != SIGHUP || !keep_hup)
      signal (sig, SIG_DFL);
  sigset_t none;
  sigemptyset (&none);
  sigprocmask (SIG_SETMASK, &none, NULL);
}

/* All that can be read from FD.  NULL: out of memory. */
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

static int
wait_for (pid_t pid)
{
  int status = 0;

  while (waitpid (pid, &status, 0) == -1 && errno == EINTR)
    ;
  return status;
}

int
child_run (const char *const *words, char **output)
{
  int fds[2] = { -1, -1 };

  if (output != NULL && pipe2 (fds, O_CLOEXEC) == -1)
    return -1;
  pid_t pid = fork ();
  if (pid == 0) {
    int null = open ("/dev/null", O_RDWR | O_CLOEXEC);
    default_signals ();
    dup2 (null, STDIN_FILENO);
    dup2 (output != NULL ? fds[1] : STDERR_FILENO, STDOUT_FILENO);
    execvp (words[0], (char *const *)(uintptr_t)words);
    _exit (127);
  }
  if (output != NULL) {
    close (fds[1]);
    *output = pid == -1 ? NULL : read_all (fds[0]);
    close (fds[0]);
  }
  if (pid == -1)
    return -1;
  int status = wait_for (pid);
  if (WIFSIGNALED (status))
    return 128 + WTERMSIG (status);
  return WEXITSTATUS (status) == 127 ? -1 : WEXITSTATUS (status);
}

/* ENVIRONMENT with what socket activation adds to it.  LISTEN_PID, which has room for the child's
 * process id, is the first variable.  NULL with errno. */
static char **
activation_environment (char *const *environment, char *listen_pid)
{
  static char listen_fds[] = "LISTEN_FDS=1";
  size_t nr = 0, n = 0;

  while (environment[nr] != NULL)
    nr++;
  char **env = calloc (nr + 3, sizeof *env);
  if (env == NULL)
    return NULL;
  env[n++] = listen_pid;
  env[n++] = listen_fds;
  for (size_t i = 0; i < nr; i++)
    if (strncmp (environment[i], "LISTEN_", 7) != 0)
      env[n++] = environment[i];
  return env;
}

/* In the child: append our process id to TEXT.  printf() is not safe here. */
static void
append_pid (char *text)
{
  char digits[24];
  size_t n = 0;
  char *p = text + strlen (text);

  for (pid_t pid = getpid (); pid > 0; pid /= 10)
    digits[n++] = (char)('0' + pid % 10);
  while (n > 0)
    *p++ = digits[--n];
  *p = '\0';
}

/* In the child: put the socket where socket activation wants it. */
static bool
place_listener (int fd)
{
  return fd == LISTEN_FD ? fcntl (fd, F_SETFD, 0) == 0 : dup2 (fd, LISTEN_FD) == LISTEN_FD;
}

/* The pipe through which a child learns that it may go on. */
struct gate {
  int fd[2]; /* -1: there is none */
};

/* Make one, if O needs it.  -1 with errno. */
static int
gate_make (struct gate *g, const struct child_options *o)
{
  g->fd[0] = g->fd[1] = -1;
  return o->before != NULL ? pipe2 (g->fd, O_CLOEXEC) : 0;
}

static void
gate_free (struct gate *g)
{
  fd_close (&g->fd[0]);
  fd_close (&g->fd[1]);
}

/* Open it to the child PID, or let that end.  0 or an errno. */
static int
gate_open (struct gate *g, const struct child_options *o, pid_t pid)
{
  int err = o->before != NULL ? o->before (o->opaque, pid) : 0;

  if (err == 0 && o->before != NULL && fd_write_all (g->fd[1], "x", 1) == -1)
    err = errno;
  gate_free (g);
  return err;
}

/* In the child. */
static void
gate_pass (const struct gate *g)
{
  char byte;
  ssize_t n;

  if (g->fd[0] == -1)
    return;
  close (g->fd[1]); /* or the end of this process's parent would not show */
  do
    n = read (g->fd[0], &byte, 1);
  while (n == -1 && errno == EINTR);
  if (n != 1)
    _exit (127);
}

/* In the child.  Why the program cannot be executed goes to ERR_FD.  ENV is what
 * activation_environment() made, or NULL. */
__attribute__ ((noreturn)) static void
become (char *const *words, const struct child_options *o, const struct gate *gate, int err_fd,
        char **env)
{
  default_signals ();
  if (o->own_group)
    setpgid (0, 0);
  if (o->end_with_us)
    prctl (PR_SET_PDEATHSIG, SIGKILL);
  gate_pass (gate);
  /* The error pipe must not be where the socket goes. */
  if (env != NULL && err_fd == LISTEN_FD)
    err_fd = fcntl (err_fd, F_DUPFD_CLOEXEC, LISTEN_FD + 1);
  if (o->stdio_fd > 0) {
    dup2 (o->stdio_fd, STDIN_FILENO);
    dup2 (o->stdio_fd, STDOUT_FILENO);
  } else if (!o->our_stdio) {
    int null = open ("/dev/null", O_RDWR | O_CLOEXEC);
    dup2 (null, STDIN_FILENO);
    dup2 (o->output_to_stderr ? STDERR_FILENO : null, STDOUT_FILENO);
  }
  for (int i = 0; i < CHILD_KEEP; i++)
    if (o->keep[i] > 0)
      fcntl (o->keep[i], F_SETFD, 0);
  if (env != NULL)
    append_pid (env[0]);
  if (env == NULL || place_listener (o->listen_fd))
    execvpe (o->path != NULL ? o->path : words[0], words,
             env != NULL              ? env
             : o->environment != NULL ? o->environment
                                      : environ);
  int err = errno;
  if (write (err_fd, &err, sizeof err) == -1)
    _exit (126);
  _exit (127);
}

pid_t
child_start (char *const *words, const struct child_options *o)
{
  char listen_pid[40] = "LISTEN_PID=";
  int fds[2];
  char **env = NULL;
  struct gate gate;

  if (o->listen_fd > 0) {
    env = activation_environment (o->environment != NULL ? o->environment : environ, listen_pid);
    if (env == NULL)
      return -1;
  }
  if (gate_make (&gate, o) == -1 || pipe2 (fds, O_CLOEXEC) == -1) {
    gate_free (&gate);
    free (env);
    return -1;
  }
  pid_t pid = fork ();
  if (pid == 0)
    become (words, o, &gate, fds[1], env);
  close (fds[1]);
  int gate_err = pid == -1 ? errno : gate_open (&gate, o, pid);
  gate_free (&gate);
  int err = gate_err;
  ssize_t n = 0;
  /* Ends when exec closes the pipe, or with the reason why it failed. */
  while (pid != -1 && (n = read (fds[0], &err, sizeof err)) == -1 && errno == EINTR)
    ;
  close (fds[0]);
  free (env);
  if (pid != -1 && n != sizeof err && gate_err == 0)
    return pid;
  if (pid != -1)
    wait_for (pid);
  errno = err;
  return -1;
}

/* Wait until END for the end of the process PIDFD, or, where there are no pidfds, for a moment. */
static void
wait_for_end (int pidfd, uint64_t end)
{
  uint64_t now = clock_ms ();
  struct pollfd p = { .fd = pidfd, .events = POLLIN };

  if (pidfd == -1)
    clock_sleep_ms (POLL_MS);
  else if (now < end)
    poll (&p, 1, end - now < INT_MAX ? (int)(end - now) : INT_MAX);
}

bool
child_ended (pid_t pid, int timeout_ms, int *status)
{
  CLEANUP_FD int pidfd = -1;
  uint64_t end = clock_ms () + (uint64_t)timeout_ms;

  for (bool asked = false;; asked = true) {
    pid_t r = waitpid (pid, status, WNOHANG);
    if (r == pid)
      return true;
    if (r == -1 && errno != EINTR) {
      *status = 0;
      return true;
    }
    if (clock_ms () >= end)
      return false;
    if (!asked)
      pidfd = (int)syscall (SYS_pidfd_open, pid, 0);
    wait_for_end (pidfd, end);
  }
}
