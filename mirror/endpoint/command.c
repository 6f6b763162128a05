/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * NBD servers run for us.  See command.h.
 *
 * Socket activation is done by hand.  libnbd has a call for it, but then its handle owns the
 * server: it makes one connection only, and nbd_close() waits without limit for a server that does
 * not end.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "mirror/endpoint/command-guard.h"
#include "mirror/endpoint/command.h"

#define ENDED_WAIT_MS 300
#define POLL_MS 5
#define STOP_WAIT_MS 5000
#define STDIO_WAIT_MS 2000 /* through ssh the end of its command comes a round trip later */
#define FIRST_FD 3         /* SD_LISTEN_FDS_START */

extern char **environ;

struct command {
  pthread_mutex_t lock; /* protects the next two: several threads open channels */
  pid_t pid;            /* 0: reaped */
  int wait_status;
  struct command_guard guard;
  bool stdio;
  char dir[32];
  char socket[48];
};

/* Wait up to MS for the end.  True if it has ended. */
static bool
wait_for_end (struct command *cmd, unsigned ms)
{
  uint64_t deadline = clock_ms () + ms;

  pthread_mutex_lock (&cmd->lock);
  while (cmd->pid > 0) {
    pid_t r = waitpid (cmd->pid, &cmd->wait_status, WNOHANG);

    if (r == cmd->pid || (r == -1 && errno != EINTR))
      cmd->pid = 0;
    else if (clock_ms () >= deadline)
      break;
    else
      clock_sleep_ms (POLL_MS);
  }
  bool ended = cmd->pid <= 0;
  pthread_mutex_unlock (&cmd->lock);
  return ended;
}

/* The environment of the child: ours, with LISTEN_FDS, and room for LISTEN_PID in the first place.
 */
static char **
make_environment (char *listen_pid)
{
  static char listen_fds[] = "LISTEN_FDS=1";
  size_t nr = 0, n = 0;

  while (environ[nr])
    nr++;

  char **env = calloc (nr + 3, sizeof *env);
  if (!env)
    return NULL;
  env[n++] = listen_pid;
  env[n++] = listen_fds;
  for (size_t i = 0; i < nr; i++)
    if (strncmp (environ[i], "LISTEN_", 7) != 0)
      env[n++] = environ[i];
  return env;
}

/* Run in the child, between fork and exec.  It does only what is safe in a copy of a process with
 * threads. */
static void
run_child (const struct command *cmd, int sock, int err_fd, char *const *argv, char **env,
           char *listen_pid)
{
  char digits[24];
  size_t n = 0;
  char *p = listen_pid + strlen (listen_pid);
  sigset_t none;

  for (pid_t pid = getpid (); pid > 0; pid /= 10)
    digits[n++] = (char)('0' + pid % 10);
  while (n > 0)
    *p++ = digits[--n];
  *p = '\0';

  /* The error pipe must not be where the socket goes. */
  if (err_fd == FIRST_FD)
    err_fd = fcntl (err_fd, F_DUPFD_CLOEXEC, FIRST_FD + 1);
  if (cmd->stdio) {
    setpgid (0, 0);
    if (dup2 (sock, STDIN_FILENO) == -1 || dup2 (sock, STDOUT_FILENO) == -1)
      goto fail;
  } else if (sock == FIRST_FD) {
    if (fcntl (sock, F_SETFD, 0) == -1)
      goto fail;
  } else if (dup2 (sock, FIRST_FD) == -1)
    goto fail;
  sigemptyset (&none);
  sigprocmask (SIG_SETMASK, &none, NULL);
  signal (SIGPIPE, SIG_DFL);
  execvpe (argv[0], argv, cmd->stdio ? environ : env);
fail:;
  int err = errno;
  if (write (err_fd, &err, sizeof err) == -1)
    _exit (126);
  _exit (127);
}

/* Fork and exec.  0 or an errno. */
static int
spawn (struct command *cmd, int sock, char *const *argv)
{
  char listen_pid[40] = "LISTEN_PID=";
  char **env = make_environment (listen_pid);
  int pipe_fds[2], err = 0;

  if (!env || pipe2 (pipe_fds, O_CLOEXEC) == -1) {
    err = errno;
    free (env);
    return err;
  }
  cmd->pid = fork ();
  if (cmd->pid == 0)
    run_child (cmd, sock, pipe_fds[1], argv, env, listen_pid);
  if (cmd->pid == -1)
    err = errno;
  close (pipe_fds[1]);
  if (cmd->pid > 0) {
    ssize_t r;

    /* Ends when exec closes the pipe, or with the reason why it failed. */
    do
      r = read (pipe_fds[0], &err, sizeof err);
    while (r == -1 && errno == EINTR);
    if (r != sizeof err)
      err = 0;
  }
  close (pipe_fds[0]);
  free (env);
  return err;
}

static int
listen_on (struct command *cmd)
{
  struct sockaddr_un addr = { .sun_family = AF_UNIX };

  strcpy (cmd->dir, "/tmp/nbdmirror-XXXXXX");
  if (!mkdtemp (cmd->dir)) {
    cmd->dir[0] = '\0';
    return -1;
  }
  snprintf (cmd->socket, sizeof cmd->socket, "%s/nbd", cmd->dir);
  strcpy (addr.sun_path, cmd->socket);

  int sock = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (sock == -1)
    return -1;
  if (bind (sock, (struct sockaddr *)&addr, sizeof addr) == -1 || listen (sock, SOMAXCONN) == -1) {
    int err = errno;

    close (sock);
    errno = err;
    return -1;
  }
  return sock;
}

/* NULL, with *ERRNUM and *ERROR (either may be NULL). */
__attribute__ ((format (printf, 4, 5))) static struct command *
refuse (int *errnum, char **error, int err, const char *format, ...)
{
  va_list args;

  if (errnum != NULL)
    *errnum = err;
  if (error != NULL) {
    va_start (args, format);
    *error = text_vprintf (format, args);
    va_end (args);
  }
  return NULL;
}

static struct command *
command_new (void)
{
  struct command *cmd = calloc (1, sizeof *cmd);

  if (cmd != NULL)
    pthread_mutex_init (&cmd->lock, NULL);
  return cmd;
}

struct command *
command_start_stdio (const char *name, char *const *argv, int *fd, int *errnum, char **error)
{
  struct command *cmd = command_new ();
  int fds[2];

  if (cmd == NULL || socketpair (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == -1) {
    int err = errno;

    free (cmd);
    return refuse (errnum, error, err, "%s: cannot make a connection for it: %s", name,
                   strerror (err));
  }
  cmd->stdio = true;

  int err = spawn (cmd, fds[1], argv);

  close (fds[1]);
  if (err == 0) {
    *fd = fds[0];
    return cmd;
  }
  close (fds[0]);
  command_stop (cmd);
  return refuse (errnum, error, err, "%s: cannot run %s: %s", name, argv[0], strerror (err));
}

struct command *
command_start (const char *name, char *const *argv, int *errnum, char **error)
{
  struct command *cmd = command_new ();
  int sock = cmd != NULL ? listen_on (cmd) : -1;

  if (sock == -1) {
    int err = errno;

    if (cmd != NULL)
      command_stop (cmd);
    return refuse (errnum, error, err, "%s: cannot make a socket for it: %s", name, strerror (err));
  }

  int err = spawn (cmd, sock, argv);

  close (sock);
  if (err == 0)
    err = command_guard_start (&cmd->guard, cmd->pid, cmd->socket, cmd->dir);
  if (err == 0)
    return cmd;
  command_stop (cmd);
  return refuse (errnum, error, err, "%s: cannot run %s: %s", name, argv[0], strerror (err));
}

const char *
command_socket (const struct command *cmd)
{
  return cmd->socket;
}

char *
command_ended (struct command *cmd)
{
  /* The connection breaks a moment before the process is gone. */
  if (!wait_for_end (cmd, cmd->stdio ? STDIO_WAIT_MS : ENDED_WAIT_MS))
    return NULL;
  if (WIFSIGNALED (cmd->wait_status))
    return text_printf ("the command was ended by signal %d (%s)", WTERMSIG (cmd->wait_status),
                        strsignal (WTERMSIG (cmd->wait_status)));
  /* A server that is made for one connection ends in order when that is closed. */
  if (!cmd->stdio && WEXITSTATUS (cmd->wait_status) == 0)
    return text_copy ("the command ended with status 0 before it was stopped; does it serve one "
                      "connection only? (qemu-nbd needs -t)");
  return text_printf ("the command ended with status %d", WEXITSTATUS (cmd->wait_status));
}

int
command_exit_status (const struct command *cmd)
{
  return cmd->pid <= 0 && WIFEXITED (cmd->wait_status) ? WEXITSTATUS (cmd->wait_status) : -1;
}

void
command_stop (struct command *cmd)
{
  /* Its connection is closed.  What ssh runs ends by itself then, after all that it was asked to
   * do. */
  if (cmd->stdio && cmd->pid > 0)
    wait_for_end (cmd, STDIO_WAIT_MS);
  if (cmd->pid > 0) {
    kill (cmd->pid, SIGTERM);
    if (!wait_for_end (cmd, STOP_WAIT_MS)) {
      kill (cmd->pid, SIGKILL);
      wait_for_end (cmd, STOP_WAIT_MS);
    }
  }
  command_guard_stop (&cmd->guard);
  if (cmd->socket[0])
    unlink (cmd->socket);
  if (cmd->dir[0])
    rmdir (cmd->dir);
  pthread_mutex_destroy (&cmd->lock);
  free (cmd);
}
