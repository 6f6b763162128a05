/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The mirrors of a migration: one worker process a disk, `nbdmirror mirror`.  They outlive us when
 * we are killed, so that another try finds its jobs ready; a roll-back cancels those that we began.
 */

#include "config.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cmd/control-query.h"
#include "cmd/migrate/migrate.h"
#include "base/child.h"
#include "mirror/endpoint/same-place.h"
#include "mirror/endpoint/seal.h"

#define LOOK_MS 100
#define SILENT_MS 20000 /* workers tell how they stand four times a second */
#define END_MS 5000     /* for a worker to end when it is told to */

int
disks_connect (struct migrate *m)
{
  unsigned i;

  for (i = 0; i < m->nr; i++) {
    struct disk *d = &m->disks[i];
    char *error = NULL;

    d->client = control_client_connect (d->control, JOB_CALL_MS, &error);
    if (d->client == NULL)
      return migrate_fail_with (m, EXIT_ERROR, error);
  }
  return 0;
}

/* Ask for D's status.  A lost connection is made anew, once. */
static int
look (struct migrate *m, struct disk *d)
{
  char *error = NULL;
  json_t *status = NULL;
  int try;

  for (try = 0; try < 2; try++) {
    free (error);
    error = NULL;
    if (d->client == NULL)
      d->client = control_client_connect (d->control, JOB_CALL_MS, &error);
    struct control_call call
        = { .command = "query-mirror", .timeout_ms = JOB_CALL_MS, .ret = &status };
    if (d->client != NULL && control_client_call (d->client, &call, &error) == 0) {
      json_decref (d->status);
      d->status = status;
      return 0;
    }
    control_client_free (d->client);
    d->client = NULL;
  }
  return migrate_fail_with (m, EXIT_ERROR, error);
}

static bool
is_one_of (const char *state, const char *const list[])
{
  size_t i;

  for (i = 0; list[i] != NULL; i++)
    if (strcmp (state, list[i]) == 0)
      return true;
  return false;
}

int
disks_check (struct migrate *m)
{
  static const char *const running[]
      = { "copying", "ready", "throttled", "synchronous", "degraded", NULL };
  static const char *const none[] = { "idle", "cancelled", "failed", NULL };
  unsigned i;

  for (i = 0; i < m->nr; i++) {
    struct disk *d = &m->disks[i];
    const char *state;

    if (look (m, d) == -1)
      return -1;
    state = job_text (d->status, "state");
    if (state == NULL)
      state = "unknown";
    d->ours = !is_one_of (state, running);
    if (!d->ours) {
      /* Of an earlier try, perhaps, that was killed: the guest would be started on a disk that
       * nobody filled. */
      const char *target = job_text (d->status, "target");

      if (target != NULL && !same_place (target, d->dest))
        return migrate_fail (m, EXIT_REFUSED,
                             "%s: a job is at work that mirrors it to %s, not to %s: 'nbdmirror"
                             " cancel' ends it",
                             d->control, target, d->dest);
      continue;
    }
    if (strcmp (state, "completed") == 0)
      return migrate_fail (m, EXIT_REFUSED,
                           "%s: it was handed over already: roll it back first, if the guest"
                           " really is here",
                           d->control);
    if (strcmp (state, "detached") == 0 && !m->o.resume)
      return migrate_fail (m, EXIT_REFUSED,
                           "%s: a job is left over: --resume goes on with it, 'nbdmirror"
                           " cancel' drops it",
                           d->control);
    if (strcmp (state, "detached") != 0 && !is_one_of (state, none))
      return migrate_fail (m, EXIT_REFUSED, "%s: its job is %s", d->control, state);
  }
  return 0;
}

/* ---- workers -------------------------------------------------------------------------------- */

static const char *
own_path (void)
{
  static char path[4096];
  ssize_t n = readlink ("/proc/self/exe", path, sizeof path - 1);

  if (n <= 0)
    return "nbdmirror";
  path[n] = '\0';
  return path;
}

static int
start_one (struct migrate *m, struct disk *d)
{
  const char *state = job_text (d->status, "state");
  bool resume = state != NULL && strcmp (state, "detached") == 0;
  const char *argv[16] = { "nbdmirror", "mirror", d->control, d->dest, "--json" };
  int n = 5;

  if (resume)
    argv[n++] = "--resume";
#define PASS(option, value)                                                                        \
  if (value != NULL) {                                                                             \
    argv[n++] = option;                                                                            \
    argv[n++] = value;                                                                             \
  }
  PASS ("--bandwidth", m->o.bandwidth)
  PASS ("--max-downtime", m->o.max_downtime)
  PASS ("--policy", m->o.policy)
  PASS ("--connections", m->o.connections)
#undef PASS
  const struct child_options own = { .path = own_path (), .own_group = true };
  d->pid = child_start ((char *const *)argv, &own);
  if (d->pid == -1) {
    d->pid = 0;
    return migrate_fail (m, EXIT_ERROR, "%s: cannot start a worker: %m", d->control);
  }
  guard_note (m);
  log_event (m, "worker",
             json_pack ("{s:s, s:s, s:i, s:b}", "control", d->control, "destination", d->dest,
                        "pid", (int)d->pid, "resume", resume));
  return 0;
}

int
disks_start (struct migrate *m)
{
  unsigned i;

  for (i = 0; i < m->nr; i++)
    if (m->disks[i].ours && start_one (m, &m->disks[i]) == -1)
      return -1;
  return 0;
}

/* The worker of D has ended before its time. */
static int
worker_ended (struct migrate *m, const struct disk *d)
{
  int status = d->wait_status;

  if (WIFSIGNALED (status))
    return migrate_fail (m, EXIT_ERROR, "%s: its worker was killed by signal %d", d->control,
                         WTERMSIG (status));
  return migrate_fail (m, WEXITSTATUS (status) != 0 ? WEXITSTATUS (status) : EXIT_ERROR,
                       "%s: its worker has ended with status %d", d->control, WEXITSTATUS (status));
}

/* A worker that is stopped, or hangs, says nothing: nobody else would ever end the wait for it.
 * (One whose destination is lost says so, again and again.) */
static int
check_silence (struct migrate *m, struct disk *d)
{
  double told = job_number (d->status, "total-s", -1), now = migrate_now ();

  if (d->heard_ms <= 0 || told != d->told_s) {
    d->told_s = told;
    d->heard_ms = now;
  }
  if (now - d->heard_ms <= SILENT_MS)
    return 0;
  return migrate_fail (m, EXIT_ERROR, "%s: its worker has said nothing for %d s: is it stopped?",
                       d->control, SILENT_MS / 1000);
}

int
disks_look (struct migrate *m, bool *ready)
{
  static const char *const over[] = { "failed", "cancelled", "completed", "detached", NULL };
  unsigned i;

  *ready = true;
  for (i = 0; i < m->nr; i++) {
    struct disk *d = &m->disks[i];
    const char *state;

    if (d->pid > 0 && !d->ended)
      d->ended = child_ended (d->pid, 0, &d->wait_status);
    if (d->pid > 0 && d->ended)
      return worker_ended (m, d);
    if (look (m, d) == -1 || check_silence (m, d) == -1)
      return -1;
    state = job_text (d->status, "state");
    if (state == NULL)
      state = "unknown";
    /* Ours may not have attached yet: then it is the state of before. */
    if (!d->ours && is_one_of (state, over))
      return migrate_fail (m, EXIT_ERROR, "%s: its job is %s", d->control, state);
    if (strcmp (state, "ready") != 0)
      *ready = false;
  }
  return 0;
}

int
disks_wait_ready (struct migrate *m)
{
  bool ready = false;

  while (!ready) {
    if (migrate_interrupted (m) == -1 || disks_look (m, &ready) == -1)
      return -1;
    if (m->dest.qmp == NULL)
      return migrate_fail (m, EXIT_ERROR, "the destination QEMU has closed its monitor");
    if (m->source.qmp == NULL)
      return migrate_fail (m, EXIT_ERROR, "the source QEMU has closed its monitor");
    log_progress (m);
    if (!ready)
      migrate_wait (m, LOOK_MS);
  }
  return 0;
}

void
disks_refresh (struct migrate *m)
{
  unsigned i;

  for (i = 0; i < m->nr; i++) {
    struct disk *d = &m->disks[i];
    json_t *status = NULL;
    char *error = NULL;

    struct control_call call
        = { .command = "query-mirror", .timeout_ms = JOB_CALL_MS, .ret = &status };
    if (d->client != NULL && control_client_call (d->client, &call, &error) == 0) {
      json_decref (d->status);
      d->status = status;
    }
    free (error);
  }
}

bool
disks_degraded (struct migrate *m)
{
  unsigned i;

  disks_refresh (m);
  for (i = 0; i < m->nr; i++) {
    const char *state = job_text (m->disks[i].status, "state");

    if (state != NULL && strcmp (state, "degraded") == 0)
      return true;
  }
  return false;
}

/* ---- the end -------------------------------------------------------------------------------- */

/* Through the filter: drops what a worker that was killed left over. */
static void
drop_job (struct migrate *m, struct disk *d)
{
  char *error = NULL;

  if (d->client == NULL)
    d->client = control_client_connect (d->control, JOB_CALL_MS, &error);
  struct control_call call = { .command = "block-job-cancel", .timeout_ms = JOB_CALL_MS };
  if (d->client != NULL)
    control_client_call (d->client, &call, &error);
  if (error != NULL)
    log_text (m, "cancel", error);
  free (error);
}

/* SIGINT cancels a worker's job, also of one that has not attached yet. */
static void
cancel_one (struct migrate *m, struct disk *d)
{
  if (!d->ended) {
    kill (d->pid, SIGINT);
    d->ended = child_ended (d->pid, END_MS, &d->wait_status);
  }
  if (!d->ended) {
    kill (d->pid, SIGKILL);
    d->ended = child_ended (d->pid, END_MS, &d->wait_status);
  }
  if (!d->ended || !WIFEXITED (d->wait_status) || WEXITSTATUS (d->wait_status) != EXIT_CANCELLED)
    drop_job (m, d);
  if (!WIFEXITED (d->wait_status)
      || WEXITSTATUS (d->wait_status) != EXIT_DONE) /* not after a hand-over */
    log_rolled_back (m, "%s: the mirror was cancelled", d->control);
}

void
disks_cancel (struct migrate *m)
{
  unsigned i;

  for (i = 0; i < m->nr && !m->o.keep_mirrors; i++) {
    struct disk *d = &m->disks[i];
    char *error = NULL;
    int r;

    if (!d->ours || d->pid <= 0)
      continue;
    cancel_one (m, d);
    r = destination_give_up (d->dest, &error);
    if (r == 0)
      log_rolled_back (m, "%s: given up", d->dest);
    else if (r == -1)
      log_text (m, "give-up", error != NULL ? error : "out of memory");
    free (error);
  }
}

void
disks_reap (struct migrate *m)
{
  unsigned i;

  for (i = 0; i < m->nr; i++) {
    struct disk *d = &m->disks[i];

    if (d->pid > 0 && !d->ended)
      d->ended = child_ended (d->pid, END_MS, &d->wait_status);
    if (d->pid > 0 && !d->ended)
      cmd_warning ("%s: its worker, process %ld, has not ended yet", d->control, (long)d->pid);
  }
}

void
disks_free (struct migrate *m)
{
  unsigned i;

  for (i = 0; i < m->nr; i++) {
    control_client_free (m->disks[i].client);
    json_decref (m->disks[i].status);
  }
}
