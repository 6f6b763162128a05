/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See mirror-qmp.h.
 */

#include "config.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fd.h"
#include "base/text.h"
#include "budget/budget.h"
#include "cmd/cmd.h"
#include "cmd/control-query.h"
#include "cmd/show-progress.h"
#include "cmd/tracked/mirror-qmp.h"
#include "cmd/tracked/qemu-tracker.h"
#include "cmd/units.h"
#include "control/client.h"
#include "control/name.h"
#include "mirror/job/copy-server.h"

static _Atomic int *asked;
static int asked_fd;

/* A later SIGINT or SIGTERM counts more, an earlier one as well. */
static void
on_complete (int sig)
{
  int none = JOB_SIGNAL_NONE;

  (void)sig;
  if (atomic_compare_exchange_strong (asked, &none, JOB_SIGNAL_COMPLETE))
    fd_wake (asked_fd);
}

static bool
take_signals (struct copy_options *o)
{
  struct sigaction sa = { .sa_handler = on_complete, .sa_flags = SA_RESTART };

  o->signal_fd = worker_signals (&o->signal);
  if (o->signal_fd == -1)
    return false;
  asked = o->signal;
  asked_fd = o->signal_fd;
  sigemptyset (&sa.sa_mask);
  sigaction (SIGUSR1, &sa, NULL);
  return true;
}

/* The last line.  Errors were told already. */
static void
say_end (struct worker *w, enum job_result result, const json_t *report)
{
  char sent[UNITS_BUF], took[UNITS_BUF];

  if (w->progress)
    progress_break (w->progress);
  if ((result == JOB_COMPLETED || result == JOB_NOT_SEALED) && report)
    cmd_say ("completed: %s sent in %s, pause %.1f ms; the guest is stopped, for the destination",
             units_format_size (sent, (uint64_t)status_number (report, "sent-bytes", 0)),
             units_format_time (took, 1000 * status_number (report, "total-s", 0)),
             status_number (report, "downtime-ms", 0));
  else if (result == JOB_CANCELLED)
    cmd_say ("cancelled: the guest goes on at the source; the destination is incomplete");
}

static enum job_result
run_job (struct qemu_tracker *t, struct worker *w, const struct worker_settings *settings,
         struct copy_options *o, json_t **report)
{
  const struct tracker functions = qemu_tracker_functions (t);

  if (!take_signals (o) || !worker_join_budget (settings, t->node, &o->budget))
    return JOB_FAILED;
  o->source = &t->uri;
  o->nr_source = 1;
  o->tracker = &functions;
  o->opaque = w;
  o->message = worker_message;
  o->progress = worker_progress;
  if (!w->json)
    w->progress = progress_new (stderr, NULL);
  enum job_result result = copy_run (o, report);
  budget_leave (o->budget);
  if (!w->json)
    say_end (w, result, *report);
  return result;
}

/* Is all of SOURCE behind "qmp:" a socket, and so no node named? */
static bool
is_monitor (const char *source)
{
  struct stat st;

  return stat (strchr (source, ':') + 1, &st) == 0 && S_ISSOCK (st.st_mode);
}

int
mirror_qmp_run (const char *source, struct worker *w, const struct worker_settings *settings,
                struct copy_options *o)
{
  CLEANUP_TEXT char *qmp = NULL, *error = NULL, *left = NULL;
  const char *node;
  struct qemu_tracker t;
  enum job_result result = JOB_FAILED;
  json_t *report = NULL;
  bool refused = false;

  if (!control_name_split (source, &qmp, &node))
    return cmd_usage_error (
        "%s: must be qmp:SOCKET/NODE, the path of a monitor socket and the name "
        "of a node",
        source);
  if (is_monitor (source))
    return cmd_usage_error ("%s: the name of the node is missing: give %s/NODE", source, source);
  CLEANUP_TEXT char *path = control_name_path (source);
  /* First of all: what is left over in QEMU may be the job's that listens here. */
  o->server = copy_server_new (path, &error);
  if (o->server != NULL
      && qemu_tracker_begin (&t, qmp, node, o->dest.dest[0], &refused, &error) == 0)
    result = run_job (&t, w, settings, o, &report);
  else {
    refused = refused || (o->server == NULL && !control_nobody_listens (source));
    cmd_say ("%s%s", refused ? "refused: " : "", error);
    result = refused ? JOB_REFUSED : JOB_FAILED;
  }
  if (o->server != NULL && qemu_tracker_end (&t, &left) == -1)
    cmd_warning ("left over in QEMU until the next run: %s", left);
  if (o->server != NULL && o->signal != NULL) /* a job was begun */
    copy_server_linger (o->server, report, o->signal, o->signal_fd);
  copy_server_free (o->server);
  return worker_finish (w, result, report);
}
