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

/* A socket that listens at X->socket.  -1 after a message. */
static int
listen_at (const struct far_export *x)
{
  struct sockaddr_un address = { .sun_family = AF_UNIX };
  int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

  if (strlen (x->socket) >= sizeof address.sun_path)
    errno = ENAMETOOLONG;
  else {
    strcpy (address.sun_path, x->socket);
    if (fd != -1 && bind (fd, (struct sockaddr *)&address, sizeof address) == 0
        && listen (fd, BACKLOG) == 0)
      return fd;
  }
  cmd_say ("%s: %s", x->socket, strerror (errno));
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
  if (socket == NULL) {
    strcpy (x->dir, "/tmp/nbdmirror-export.XXXXXX");
    if (mkdtemp (x->dir) == NULL) {
      cmd_say ("%s: %s", x->dir, strerror (errno));
      return -1;
    }
  }
  snprintf (x->socket, sizeof x->socket, "%s%s", socket != NULL ? socket : x->dir,
            socket != NULL ? "" : "/s");
  CLEANUP_FD int listener = listen_at (x);
  if (listener == -1)
    x->socket[0] = '\0'; /* it may be another server's */
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
  if (x->socket[0] != '\0')
    unlink (x->socket);
  if (x->dir[0] != '\0')
    rmdir (x->dir);
}
