/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Running nbdkit.  In the foreground this process turns into it, so its pid and its exit status are
 * the server's.  In the background nbdkit detaches itself, and we wait until both sockets are
 * there.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/child.h"
#include "base/clock.h"
#include "base/pid-file.h"
#include "cmd/cmd.h"
#include "cmd/control-query.h"
#include "cmd/serve/nbdkit-answers.h"
#include "cmd/serve/nbdkit-run.h"
#include "cmd/serve/tidy.h"

#define DETACH_MS 15000 /* how long nbdkit may take to go to the background */
#define SERVE_MS 75000  /* and then to serve; the image plugin waits 60 s for qemu-nbd */
#define POLL_MS 10
#define WARNED "NBDMIRROR_WARNED" /* environment: the warning about nbdkit was given */

/* 1.32.4 to 1.33.9 fail an assertion when a client dies with several requests in flight. */
static bool
has_abort_bug (unsigned major, unsigned minor, unsigned release)
{
  return major == 1 && ((minor == 32 && release >= 4) || (minor == 33 && release <= 9));
}

/* Is there an nbdkit, and is it one with the bug? */
int
nbdkit_check (void)
{
  const char *const words[] = { "nbdkit", "--dump-config", NULL };
  unsigned major = 0, minor = 0, release = 0;
  char *config = NULL, version[64] = "";

  int status = child_run (words, &config);
  for (const char *line = config; line != NULL; line = strchr (line, '\n')) {
    line += *line == '\n';
    if (sscanf (line, "version=%63s", version) == 1)
      sscanf (version, "%u.%u.%u", &major, &minor, &release);
  }
  free (config);
  if (status != 0) {
    cmd_say ("nbdkit cannot be run: is it installed and in PATH?");
    return -1;
  }
  if (has_abort_bug (major, minor, release) && getenv (WARNED) == NULL) {
    setenv (WARNED, "1", 1); /* `evacuate-disk` runs `serve`, twice */
    cmd_warning ("this server, nbdkit %s, ends if a client dies with several requests in flight; "
                 "see nbdmirror(1), CAVEATS",
                 version);
  }
  return 0;
}

static _Noreturn void
exec_nbdkit (const struct nbdkit_run *r)
{
  execvp (r->words[0], r->words);
  cmd_say ("nbdkit: %s", strerror (errno));
  _exit (EXIT_ERROR);
}

/* IS_BOUND: SERVER has made its sockets. */
static void
start_tidying (const struct nbdkit_run *r, pid_t server, bool is_bound)
{
  const struct tidy_path paths[TIDY_PATHS_MAX]
      = { { r->socket, true, is_bound }, { r->control, true, is_bound }, { .path = r->pidfile } };

  if (tidy_start (server, paths) == 0)
    return;
  if (errno == ESRCH) /* it has ended already */
    tidy_now (server, paths);
  else
    cmd_warning ("%s will be left behind at the end: %s", r->socket, strerror (errno));
}

static bool
is_changed (const char *path, const struct stat *old)
{
  struct stat st;

  return stat (path, &st) == 0
         && (st.st_ino != old->st_ino || st.st_mtim.tv_sec != old->st_mtim.tv_sec
             || st.st_mtim.tv_nsec != old->st_mtim.tv_nsec);
}

/* nbdkit's first process ends before the second has written the pid file.  What was there before is
 * OLD, all zeroes if nothing was.  It is not removed: it may belong to a server that was started at
 * the same time, and has won. */
static pid_t
wait_for_pidfile (const char *path, const struct stat *old)
{
  for (int waited = 0; waited < DETACH_MS; waited += POLL_MS) {
    pid_t pid = is_changed (path, old) ? pid_file_read (path) : 0;
    if (pid > 0)
      return pid;
    clock_sleep_ms (POLL_MS);
  }
  return -1;
}

/* nbdkit and the filter listen before nbdkit goes to the background.  But they serve only when the
 * plugin has opened the disk, for which it may have to start qemu-nbd. */
static int
wait_until_it_serves (const struct nbdkit_run *r, pid_t server)
{
  switch (nbdkit_answers (r->socket, server, SERVE_MS)) {
  case NBDKIT_ANSWERS:
    return EXIT_DONE;
  case NBDKIT_ENDED:
    cmd_say ("the server ended before it served the disk at %s (its messages are in the system "
             "log; without --detach they are shown)",
             r->socket);
    return EXIT_ERROR;
  case NBDKIT_SILENT:
    break;
  }
  cmd_say ("the server does not answer at %s after %d s", r->socket, SERVE_MS / 1000);
  kill (server, SIGTERM);
  return EXIT_ERROR;
}

/* Is it nbdkit's process FIRST that has begun to listen there?  The one that serves has inherited
 * the socket from it. */
static bool
has_begun (const struct control_client *c, pid_t first)
{
  struct ucred who;
  socklen_t len = sizeof who;

  return getsockopt (control_client_fd (c), SOL_SOCKET, SO_PEERCRED, &who, &len) == 0
         && who.pid == first;
}

/* The server runs, but could not write its process id, which nbdkit does not notice.  Nobody would
 * know of it, and the next one would find its sockets in use.  But ours may have ended, and another
 * one have come meanwhile.  FIRST was nbdkit's first process. */
static void
end_unnamed (const struct nbdkit_run *r, pid_t first)
{
  struct control_client *c = query_connect (r->control);
  json_t *status = NULL;

  if (c != NULL && has_begun (c, first)
      && query_call (c, r->control, "query-mirror", NULL, &status, NULL) == 0) {
    pid_t server = (pid_t)status_number (status, "server-pid", 0);
    if (server > 0) {
      start_tidying (r, server, true);
      kill (server, SIGTERM);
      cmd_say ("the server, process %ld, is ended", (long)server);
    }
  }
  json_decref (status);
  control_client_free (c);
}

/* In the child.  A Ctrl-C in the terminal or the script that has started the server is not for it,
 * and nbdkit itself stays in our process group.  But until it serves it ends with us. */
static _Noreturn void
exec_in_background (const struct nbdkit_run *r, pid_t parent)
{
  setsid ();
  prctl (PR_SET_PDEATHSIG, SIGTERM); /* for nbdkit's first process */
  if (getppid () != parent)
    _exit (EXIT_ERROR);
  exec_nbdkit (r);
}

int
nbdkit_run_detached (const struct nbdkit_run *r)
{
  pid_t parent = getpid ();
  struct stat old;
  int status;

  if (stat (r->pidfile, &old) == -1)
    old = (struct stat){ 0 };
  fflush (NULL);
  pid_t pid = fork ();
  if (pid == -1) {
    cmd_say ("fork: %s", strerror (errno));
    return EXIT_ERROR;
  }
  if (pid == 0)
    exec_in_background (r, parent);
  while (waitpid (pid, &status, 0) == -1 && errno == EINTR)
    ;
  if (!WIFEXITED (status) || WEXITSTATUS (status) != 0) {
    if (tidy_look (r->socket) == TIDY_STALE)
      unlink (r->socket);
    return EXIT_ERROR; /* nbdkit has said why */
  }
  pid_t server = wait_for_pidfile (r->pidfile, &old);
  if (server == -1) {
    cmd_say ("%s: nbdkit could not write its process id there (is the file system full?)",
             r->pidfile);
    end_unnamed (r, pid);
    return EXIT_ERROR;
  }
  start_tidying (r, server, true);
  return wait_until_it_serves (r, server);
}

int
nbdkit_become (const struct nbdkit_run *r)
{
  start_tidying (r, getpid (), false);
  signal (SIGPIPE, SIG_DFL);
  exec_nbdkit (r);
}
