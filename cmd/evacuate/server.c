/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * evacuate-disk's two servers.  See server.h.
 *
 * The old one is ended with SIGKILL: at a SIGTERM nbdkit answers the requests that wait with
 * ESHUTDOWN, which QEMU hands to its guest as an I/O error; a connection that just breaks makes it
 * connect again and repeat them.
 */

#include "config.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/pid-file.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/control-query.h"
#include "cmd/evacuate/server.h"
#include "cmd/serve/paths.h"
#include "cmd/serve/tidy.h"
#include "mirror/endpoint/uri.h"

#define END_MS 10000 /* how long a killed server may take to be gone, or a started one to serve */
#define LOOK_MS 10

/* ---- the old server -------------------------------------------------------------------------- */

/* The path of the socket in an NBD URI, for text_free().  NULL: it has none. */
static char *
socket_of_uri (const char *text)
{
  struct uri *uri = uri_read (text, NULL);
  const char *socket = uri != NULL && uri->is_unix ? uri_parameter (uri, "socket") : NULL;
  char *path = socket != NULL ? text_copy (socket) : NULL;

  uri_free (uri);
  return path;
}

/* The process, and a descriptor that stands for just that.  (Not SO_PEERCRED: that names who called
 * listen(), which was before nbdkit went to the background.)  In a container of its own it would
 * tell a number that is another process here: so its name is looked at. */
static int
find_process (struct old_server *o, const json_t *status)
{
  char path[64], name[32] = "";

  o->pid = (pid_t)status_number (status, "server-pid", 0);
  if (o->pid <= 0) {
    cmd_say ("%s: this server is too old: it does not tell its process id", o->control);
    return -1;
  }
  o->pidfd = (int)syscall (SYS_pidfd_open, o->pid, 0);
  snprintf (path, sizeof path, "/proc/%ld/comm", (long)o->pid);
  FILE *fp = fopen (path, "re");
  if (fp != NULL) {
    if (fgets (name, sizeof name, fp) == NULL)
      name[0] = '\0';
    fclose (fp);
  }
  if (strncmp (name, "nbdkit", 6) != 0) {
    cmd_say ("%s: process %ld is not the server: does it run in a container?", o->control,
             (long)o->pid);
    return -1;
  }
  if (o->pidfd == -1 || syscall (SYS_pidfd_send_signal, o->pidfd, 0, NULL, 0) == -1) {
    cmd_say ("the server, process %ld, could not be ended later: %s", (long)o->pid,
             strerror (errno));
    return -1;
  }
  return 0;
}

static int
read_status (struct old_server *o, const json_t *status)
{
  const char *uri = status_text (status, "uri"), *name = status_text (status, "export");
  const char *disk = status_text (status, "disk");
  if (disk == NULL) /* an older server's */
    disk = status_text (status, "direct");

  CLEANUP_TEXT char *socket = uri != NULL ? socket_of_uri (uri) : NULL;
  if (socket == NULL || socket[0] != '/') {
    cmd_say ("%s: this server is not on a Unix socket (its mirror-uri is %s): a guest could not "
             "come back to "
             "the same place",
             o->control, uri != NULL ? uri : "not set");
    return -1;
  }
  /* `serve` follows links, and what its command line says is compared with this (server_at). */
  o->socket = server_absolute_path ("the server's socket", socket);
  if (o->socket == NULL)
    return -1;
  o->uri = strdup (uri);
  o->export_name = strdup (name != NULL ? name : "");
  o->disk = disk != NULL ? strdup (disk) : NULL;
  return 0;
}

int
old_server_find (struct old_server *o, const char *control, json_t **status)
{
  *status = NULL;
  o->pidfd = -1;
  const char *slash = strrchr (control, '/');
  CLEANUP_TEXT char *dir
      = slash != NULL ? text_printf ("%.*s", (int)(slash - control + 1), control) : text_copy (".");
  char *folder = realpath (dir, NULL);
  if (folder == NULL) {
    cmd_say ("%s: %s", control, strerror (errno));
    return EXIT_ERROR;
  }
  o->control = text_printf ("%s/%s", folder, slash == NULL ? control : slash + 1);
  o->control_aside = text_printf ("%s.evacuated", o->control);
  free (folder);

  enum tidy_socket aside = tidy_look (o->control_aside);
  if (aside == TIDY_STALE)
    unlink (o->control_aside);
  o->aside = aside == TIDY_IN_USE;
  const char *path = o->aside ? o->control_aside : o->control;
  o->client = query_connect (path);
  if (o->client == NULL || query_call (o->client, path, "query-mirror", NULL, status, NULL) == -1
      || find_process (o, *status) == -1 || read_status (o, *status) == -1)
    return EXIT_ERROR;
  return 0;
}

void
old_server_free (struct old_server *o)
{
  control_client_free (o->client);
  fd_close (&o->pidfd);
  text_free (o->socket);
  text_free (o->control);
  text_free (o->control_aside);
  free (o->uri);
  free (o->export_name);
  free (o->disk);
}

/* ---- the new server -------------------------------------------------------------------------- */

/* `nbdmirror serve --detach`, in a process of its own.  0 when it serves, or -1. */
static int
start (const struct old_server *o, const struct new_server *n, const char *sock,
       const char *control, const char *pidfile, const char *state)
{
  unsigned nr = 0;

  while (n->args[nr] != NULL)
    nr++;
  char *uri = text_printf ("mirror-uri=%s", o->uri);
  const char *const words[] = {
    "nbdmirror",    "serve",     n->disk,     "--format", n->format != NULL ? n->format : "raw",
    "--socket",     sock,        "--control", control,    "--export",
    o->export_name, "--pidfile", pidfile,     "--detach"
  };
  unsigned nr_words = sizeof words / sizeof words[0];
  char **argv = calloc (nr_words + nr + 5, sizeof *argv);
  if (argv == NULL)
    abort ();
  for (unsigned i = 0; i < nr_words; i++)
    argv[i] = (char *)words[i]; /* exec leaves them alone */
  if (state != NULL) {
    argv[nr_words++] = (char *)"--state";
    argv[nr_words++] = (char *)state;
  }
  argv[nr_words++] = (char *)"--";
  argv[nr_words++] = uri;
  memcpy (argv + nr_words, n->args, nr * sizeof *argv);

  fflush (NULL);
  pid_t pid = fork ();
  if (pid == 0) {
    sigset_t none;
    sigemptyset (&none);
    sigprocmask (SIG_SETMASK, &none,
                 NULL); /* a server that cannot be ended with SIGTERM helps nobody */
    execv ("/proc/self/exe", argv);
    _exit (127);
  }
  free (argv);
  text_free (uri);
  if (pid == -1) {
    cmd_say ("fork: %s", strerror (errno));
    return -1;
  }
  int status;
  while (waitpid (pid, &status, 0) == -1 && errno == EINTR)
    ;
  return status == 0 ? 0 : -1;
}

/* End the server at SOCK and wait for it; it has no clients. */
static void
stop (const char *sock, const char *pidfile)
{
  pid_t pid = pid_file_process (pidfile, sock);
  int pidfd = pid > 0 ? (int)syscall (SYS_pidfd_open, pid, 0) : -1;

  if (pidfd != -1) {
    struct pollfd p = { .fd = pidfd, .events = POLLIN };
    kill (pid, SIGTERM);
    if (poll (&p, 1, END_MS) == 0)
      kill (pid, SIGKILL);
    close (pidfd);
  }
  unlink (pidfile);
}

int
new_server_try (const struct old_server *o, const struct new_server *n)
{
  char *sock = text_printf ("%s.try", o->socket), *control = text_printf ("%s.try", o->control);
  char *pidfile = text_printf ("%s.try.pid", o->socket);
  char *state = n->state != NULL ? text_printf ("%s.try", n->state) : NULL;
  int r = start (o, n, sock, control, pidfile, state);

  stop (sock, pidfile);
  unlink (sock);
  unlink (control);
  if (state != NULL)
    unlink (state);
  text_free (state);
  text_free (sock);
  text_free (control);
  text_free (pidfile);
  if (r == -1)
    cmd_say ("a server of %s cannot be started; nothing was changed", n->disk);
  return r;
}

/* ---- the takeover ---------------------------------------------------------------------------- */

/* The guest may run as somebody else: the new socket gets owner and mode of the old one. */
static int
take_name (const char *from, const char *to)
{
  struct stat st;

  if (lstat (to, &st) == 0
      && ((chown (from, st.st_uid, st.st_gid) == -1 && errno != EPERM)
          || chmod (from, st.st_mode & 07777) == -1)) {
    cmd_say ("%s: %s", from, strerror (errno));
    return -1;
  }
  if (rename (from, to) == -1) {
    cmd_say ("cannot rename %s to %s: %s", from, to, strerror (errno));
    return -1;
  }
  return 0;
}

/* The old one was itself a new one where the disk has moved before. */
static bool
is_new (const struct old_server *o, pid_t server)
{
  return server > 0 && server != o->pid;
}

/* An earlier run, which was killed, has started the server, perhaps just now.  It listens at its
 * control socket first, and at the one that is to be renamed before it writes its process id.  1:
 * it is there.  0: it has ended.  -1: it does not come up; the guest is still at the old one. */
static int
wait_for_started (const struct old_server *o, const struct new_server *n, const char *sock)
{
  uint64_t end = clock_ms () + END_MS;

  while (!is_new (o, pid_file_process (n->pidfile, sock))) {
    if (tidy_look (o->control) != TIDY_IN_USE)
      return 0;
    if (clock_ms () >= end)
      return -1;
    clock_sleep_ms (LOOK_MS);
  }
  return 1;
}

static int
start_new (struct old_server *o, const struct new_server *n, const char *sock)
{
  if (!o->aside) {
    if (rename (o->control, o->control_aside) == -1) {
      cmd_say ("cannot rename %s: %s", o->control, strerror (errno));
      return -1;
    }
    o->aside = true;
  }
  int r = tidy_look (o->control) == TIDY_IN_USE ? wait_for_started (o, n, sock) : 0;
  if (r == 1)
    return 0;
  if (r == 0 && start (o, n, sock, o->control, n->pidfile, n->state) == 0)
    return 0;
  if (r == -1)
    cmd_say ("an earlier run has started a server at %s, which has not written %s: end it if it"
             " hangs, and run this again, with the same --pidfile",
             o->control, n->pidfile);
  else
    cmd_say ("the server of %s could not be started", n->disk);
  return -1;
}

static int
end_old (const struct old_server *o)
{
  struct pollfd p = { .fd = o->pidfd, .events = POLLIN };

  if (syscall (SYS_pidfd_send_signal, o->pidfd, SIGKILL, NULL, 0) == -1 && errno != ESRCH) {
    cmd_say ("the old server, process %ld, cannot be ended: %s: kill it with SIGKILL, the guest "
             "waits for that",
             (long)o->pid, strerror (errno));
    return -1;
  }
  if (poll (&p, 1, END_MS) == 0)
    cmd_warning ("the old server, process %ld, was killed, but is not gone after %d s",
                 (long)o->pid, END_MS / 1000);
  return 0;
}

int
takeover (struct old_server *o, const struct new_server *n, bool *taken)
{
  char *sock = text_printf ("%s.new", o->socket);
  const struct tidy_path paths[TIDY_PATHS_MAX] = { { o->socket, true, true } };
  int r = start_new (o, n, sock);

  *taken = false;
  if (r == 0 && access (sock, F_OK) == 0)
    r = take_name (sock, o->socket);
  else if (r == -1) /* then an earlier run may have given the new server the guest's name */
    *taken = access (sock, F_OK) == -1 && tidy_look (o->control) == TIDY_IN_USE;
  text_free (sock);
  if (r == -1)
    return -1;
  *taken = true;
  if (end_old (o) == -1)
    return -1;
  unlink (o->control_aside);
  tidy_start (pid_file_read (n->pidfile), paths); /* serve looks after the name that was given up */
  return 0;
}

void
takeover_undo (struct old_server *o, const struct new_server *n)
{
  char *sock = text_printf ("%s.new", o->socket);

  if (is_new (o, pid_file_process (n->pidfile, sock)))
    stop (sock, n->pidfile);
  unlink (sock);
  text_free (sock);
  if (o->aside && rename (o->control_aside, o->control) == 0)
    o->aside = false;
}
