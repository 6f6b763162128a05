/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See far-export.h.
 */

#include "config.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/child.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/far/far.h"
#include "cmd/repository/far-export.h"
#include "mirror/endpoint/ssh.h"

#define BACKLOG 16
#define LOOK_MS 1000

/* A socket that listens at PATH, or at a temporary place (NULL).  -1 after a message. */
static int
listen_at (struct far_export *x, const char *path)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  int fd;

  if (path == NULL) {
    fd = private_socket_listen (&x->temporary);
    snprintf (x->socket, sizeof x->socket, "%s", x->temporary.path);
    if (fd == -1)
      cmd_say ("a socket in /tmp: %s", strerror (errno));
    return fd;
  }
  fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (strlen (path) >= sizeof address.sun_path)
    errno = ENAMETOOLONG;
  else {
    strcpy (address.sun_path, path);
    if (fd != -1 && bind (fd, (struct sockaddr *)&address, sizeof address) == 0
        && listen (fd, BACKLOG) == 0) {
      strcpy (x->socket, path);
      return fd;
    }
  }
  cmd_say ("%s: %s", path, strerror (errno));
  fd_close (&fd);
  return -1;
}

/* In the child: a command for each client. */
__attribute__ ((noreturn)) static void
serve_clients (struct far_export *x, int listener, char *const *words, pid_t parent)
{
  struct pollfd p = { .fd = listener, .events = POLLIN };

  setpgid (0, 0);
  signal (SIGTERM, SIG_DFL);
  signal (SIGINT, SIG_DFL);
  while (getppid () == parent) {
    while (waitpid (-1, NULL, WNOHANG) > 0)
      ;
    if (poll (&p, 1, LOOK_MS) <= 0)
      continue;
    int client = accept4 (listener, NULL, NULL, SOCK_CLOEXEC);
    const struct child_options how = { .stdio_fd = client, .end_with_us = true };
    if (client != -1 && child_start (words, &how) == -1)
      cmd_say ("%s: %s", words[0], strerror (errno));
    fd_close (&client);
  }
  far_export_tidy (x); /* it was killed */
  _exit (EXIT_DONE);
}

int
far_export_start (struct far_export *x, const char *place, const char *file, const char *socket)
{
  *x = (struct far_export){ .pid = -1 };
  CLEANUP_FD int listener = listen_at (x, socket);
  char **words = listener != -1 ? far_serve_command (place, file) : NULL;
  if (words != NULL) {
    pid_t parent = getpid ();
    fflush (NULL);
    x->pid = fork ();
    if (x->pid == 0)
      serve_clients (x, listener, words, parent);
    if (x->pid == -1)
      cmd_say ("fork: %s", strerror (errno));
    else
      setpgid (x->pid, x->pid);
  }
  ssh_command_free (words);
  if (x->pid != -1)
    return 0;
  far_export_tidy (x);
  return -1;
}

void
far_export_tidy (struct far_export *x)
{
  if (x->temporary.dir[0] == '\0' && x->socket[0] != '\0')
    unlink (x->socket);
  private_socket_remove (&x->temporary);
}
