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
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/child-guard.h"
#include "base/child.h"
#include "base/fd.h"
#include "base/private-socket.h"
#include "base/text.h"
#include "mirror/endpoint/command.h"

#define ENDED_WAIT_MS 300
#define STOP_WAIT_MS 5000
#define STDIO_WAIT_MS 2000 /* through ssh the end of its command comes a round trip later */

struct command {
  pthread_mutex_t lock; /* protects the next two: several threads open channels */
  pid_t pid;            /* 0: reaped */
  int wait_status;
  struct child_guard guard;
  bool stdio;
  struct private_socket socket;
};

/* Wait up to MS for the end.  True if it has ended. */
static bool
wait_for_end (struct command *cmd, unsigned ms)
{
  pthread_mutex_lock (&cmd->lock);
  if (cmd->pid > 0 && child_ended (cmd->pid, (int)ms, &cmd->wait_status))
    cmd->pid = 0;
  bool ended = cmd->pid <= 0;
  pthread_mutex_unlock (&cmd->lock);
  return ended;
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

/* 0 or an errno. */
static int
start (struct command *cmd, char *const *argv, const struct child_options *o)
{
  pid_t pid = child_start (argv, o);

  cmd->pid = pid == -1 ? 0 : pid;
  return pid == -1 ? errno : 0;
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

  const struct child_options o = { .stdio_fd = fds[1], .own_group = true };
  int err = start (cmd, argv, &o);

  close (fds[1]);
  if (err == 0) {
    *fd = fds[0];
    return cmd;
  }
  close (fds[0]);
  command_stop (cmd);
  return refuse (errnum, error, err, "%s: cannot run %s: %s", name, argv[0], strerror (err));
}

/* Before the command begins. */
static int
guard (void *opaque, pid_t pid)
{
  struct command *cmd = opaque;

  return child_guard_start (&cmd->guard, pid, cmd->socket.path, cmd->socket.dir);
}

struct command *
command_start (const char *name, char *const *argv, int *errnum, char **error)
{
  struct command *cmd = command_new ();
  int sock = cmd != NULL ? private_socket_listen (&cmd->socket) : -1;

  if (sock == -1) {
    int err = errno;

    if (cmd != NULL)
      command_stop (cmd);
    return refuse (errnum, error, err, "%s: cannot make a socket for it: %s", name, strerror (err));
  }

  const struct child_options o
      = { .our_stdio = true, .listen_fd = sock, .before = guard, .opaque = cmd };
  int err = start (cmd, argv, &o);

  close (sock);
  if (err == 0)
    return cmd;
  command_stop (cmd);
  return refuse (errnum, error, err, "%s: cannot run %s: %s", name, argv[0], strerror (err));
}

const char *
command_socket (const struct command *cmd)
{
  return cmd->socket.path;
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
  child_guard_stop (&cmd->guard);
  private_socket_remove (&cmd->socket);
  pthread_mutex_destroy (&cmd->lock);
  free (cmd);
}
