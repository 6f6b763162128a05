/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * evacuate-disk: the worker that mirrors the old disk to the new one, a child process (`nbdmirror
 * mirror`).  If we are killed it detaches, and the job can be resumed.
 */

#include "config.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "cmd/control-query.h"
#include "cmd/evacuate/evacuate.h"

#define LOOK_MS 50
#define POLL_MS 10
#define WORKER_END_MS 5000

volatile sig_atomic_t evacuate_signal;

int
evacuate_start_worker (struct evacuate *e)
{
  char **argv = calloc (e->nr_worker_args + 6, sizeof *argv);

  if (argv == NULL)
    abort ();
  unsigned n = 0;
  argv[n++] = (char *)"nbdmirror";
  argv[n++] = (char *)"mirror";
  argv[n++] = e->old.control;
  argv[n++] = e->disk;
  for (unsigned i = 0; i < e->nr_worker_args; i++)
    argv[n++] = e->worker_args[i];
  fflush (NULL);
  pid_t parent = getpid ();
  e->worker = fork ();
  if (e->worker == 0) {
    prctl (PR_SET_PDEATHSIG, SIGTERM); /* it leaves, and the job can be resumed */
    if (getppid () != parent)
      _exit (EXIT_ERROR);
    dup2 (STDERR_FILENO, STDOUT_FILENO);
    execv ("/proc/self/exe", argv);
    _exit (127);
  }
  free (argv);
  if (e->worker == -1) {
    cmd_say ("fork: %s", strerror (errno));
    return -1;
  }
  return 0;
}

/* Has the worker ended?  Its exit status, or -1.  For one that was killed that is as for a
 * destination that failed, and *SIGNAL is set.  One that was ended by a signal which it catches had
 * not begun yet. */
static int
worker_ended (struct evacuate *e, int *signal)
{
  int status;

  if (waitpid (e->worker, &status, WNOHANG) != e->worker)
    return -1;
  e->worker = 0;
  if (WIFEXITED (status))
    return WEXITSTATUS (status);
  if (WTERMSIG (status) == SIGINT)
    return EXIT_CANCELLED;
  if (WTERMSIG (status) == SIGTERM)
    return EXIT_ERROR;
  *signal = WTERMSIG (status);
  return EXIT_DEST_FAILED;
}

/* The job of a worker that was killed (it lacked memory, say) can be resumed, so the new disk has
 * to stay. */
static int
say_killed (int signal)
{
  cmd_say ("the worker was killed by signal %d: --resume goes on with its job", signal);
  return EXIT_DEST_FAILED;
}

int
evacuate_end_worker (struct evacuate *e, int sig)
{
  int r = -1, signal;

  if (e->worker == 0)
    return EXIT_ERROR;
  if (sig != 0)
    kill (e->worker, sig);
  uint64_t end = clock_ms () + WORKER_END_MS;
  while ((r = worker_ended (e, &signal)) == -1 && clock_ms () < end)
    clock_sleep_ms (POLL_MS);
  if (r == -1) {
    kill (e->worker, SIGKILL);
    waitpid (e->worker, NULL, 0);
    e->worker = 0;
  }
  return r;
}

int
evacuate_leave (struct evacuate *e, int sig)
{
  int r = evacuate_end_worker (e, sig);

  return r > 0 ? r : r == -1 ? say_killed (SIGKILL) : EXIT_ERROR;
}

int
evacuate_wait_ready (struct evacuate *e)
{
  for (bool ready = false; !ready;) {
    clock_sleep_ms (LOOK_MS);
    if (evacuate_signal != 0)
      return evacuate_leave (e, evacuate_signal == SIGINT ? SIGINT : SIGTERM);
    int signal = 0, r = worker_ended (e, &signal);
    if (signal != 0)
      return say_killed (signal);
    if (r != -1)
      return r != 0 ? r : EXIT_ERROR;
    json_t *status = NULL;
    if (query_call (e->old.client, e->old.control, "query-mirror", NULL, &status, NULL) == -1)
      return evacuate_leave (e, SIGTERM);
    const char *state = status_text (status, "state");
    ready = status_number (status, "worker-pid", 0) == e->worker
            && ((state != NULL && strcmp (state, "ready") == 0)
                || status_is_true (status, "synchronised"));
    json_decref (status);
  }
  return 0;
}
