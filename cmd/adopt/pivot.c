/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See pivot.h.
 */

#include "config.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "cmd/adopt/pivot.h"
#include "cmd/adopt/stuck.h"

#define POLL_MS 2
/* A cancel reaches a server that is gone only once QEMU has noticed that, so it is repeated. */
#define CANCEL_MS 300
#define CANCEL_TRIES 10

/* What query-jobs says of the job. */
struct job {
  bool exists;
  char status[20]; /* running, ready, concluded … */
  char *error;     /* owned, or NULL */
};

static int
look (struct machine *v, const char *id, struct job *job, char **error)
{
  json_t *list = NULL, *o;
  size_t i;

  *job = (struct job){ .exists = false };
  if (machine_call (v, "query-jobs", NULL, &list, NULL, error) == -1)
    return -1;
  json_array_foreach (list, i, o)
  {
    const char *its = json_string_value (json_object_get (o, "id"));
    const char *status = json_string_value (json_object_get (o, "status"));
    const char *failure = json_string_value (json_object_get (o, "error"));

    if (its == NULL || strcmp (its, id) != 0)
      continue;
    job->exists = true;
    snprintf (job->status, sizeof job->status, "%s", status != NULL ? status : "");
    job->error = failure != NULL ? text_copy (failure) : NULL;
  }
  json_decref (list);
  return 0;
}

static bool
is (const struct job *job, const char *status)
{
  return job->exists && strcmp (job->status, status) == 0;
}

/* Wait until the job is STATUS, or over.  0 with *JOB (its error is for text_free()); 1 if LIMIT_MS
 * passed; -1 with *ERROR. */
static int
wait_for (struct machine *v, const char *id, const char *status, int limit_ms, struct job *job,
          char **error)
{
  uint64_t end = clock_ms () + (uint64_t)limit_ms;

  for (;;) {
    if (look (v, id, job, error) == -1)
      return -1;
    if (!job->exists || is (job, status) || is (job, "concluded"))
      return 0;
    if (clock_ms () >= end) {
      text_free (job->error);
      job->error = NULL;
      return 1;
    }
    clock_sleep_ms (POLL_MS);
  }
}

static int
dismiss (struct machine *v, const char *id, char **error)
{
  return machine_call (v, "job-dismiss", json_pack ("{s:s}", "id", id), NULL, NULL, error);
}

/* The job must end, without the other node if it still can. */
static int
stop_job (struct machine *v, const char *id, char **error)
{
  struct job job;

  for (int tries = 0; tries < CANCEL_TRIES; tries++) {
    char *refusal = NULL;
    machine_call (v, "block-job-cancel", json_pack ("{s:s, s:b}", "device", id, "force", 1), NULL,
                  NULL, &refusal);
    text_free (refusal); /* it is over, or it is being completed */
    int r = wait_for (v, id, "concluded", CANCEL_MS, &job, error);
    if (r == -1)
      return -1;
    if (r == 0) {
      text_free (job.error);
      return job.exists ? dismiss (v, id, error) : 0;
    }
  }
  return text_error (error, "QEMU's job '%s' does not end", id);
}

static int
start_job (struct machine *v, const struct pivot *p, char **error)
{
  json_t *args
      = json_pack ("{s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:s, s:s}", "job-id", p->names->job,
                   "device", p->from, "target", p->to, "sync", "none", "copy-mode",
                   "write-blocking", "filter-node-name", p->names->filter, "auto-dismiss", 0,
                   "on-source-error", "report", "on-target-error", "report");
  return machine_call (v, "blockdev-mirror", args, NULL, NULL, error);
}

/* The job is ready, or over: let it end, and say how it did. */
static int
complete_job (struct machine *v, const struct pivot *p, struct job *job, char **error)
{
  const char *id = p->names->job;

  if (is (job, "ready")) {
    char *refusal = NULL;
    machine_call (v, "block-job-complete", json_pack ("{s:s}", "device", id), NULL, NULL, &refusal);
    text_free (refusal); /* what has become of it is seen below */
    text_free (job->error);
    int r = wait_for (v, id, "concluded", PIVOT_LIMIT_MS, job, error);
    if (r != 0)
      return r;
  }
  CLEANUP_TEXT char *failure = job->error;
  job->error = NULL;
  if (!job->exists)
    return text_error (error, "somebody else has ended QEMU's job '%s'", id);
  if (dismiss (v, id, error) == -1)
    return -1;
  return failure != NULL ? text_error (error, "QEMU's job '%s': %s", id, failure) : 0;
}

static int
run_job (struct machine *v, const struct pivot *p, char **error)
{
  struct job job;

  if (start_job (v, p, error) == -1)
    return -1;
  int r = wait_for (v, p->names->job, "ready", PIVOT_LIMIT_MS, &job, error);
  if (r == 0)
    r = complete_job (v, p, &job, error);
  if (r != 1)
    return r;
  if (stop_job (v, p->names->job, error) == -1)
    return -1;
  return text_error (error, "QEMU's job '%s' was not done after %d ms", p->names->job,
                     PIVOT_LIMIT_MS);
}

int
pivot (struct machine *v, struct pivot *p, char **error)
{
  struct stuck_watch w = { .stuck = p->stuck, .opaque = p->opaque };

  if (p->stuck != NULL && stuck_watch_start (&w, error) == -1)
    return -1;
  int r = p->add_node != NULL ? p->add_node (p->opaque, error) : 0;
  uint64_t start = clock_ns ();
  if (r == 0)
    r = run_job (v, p, error);
  p->took_ns = clock_ns () - start;
  if (p->stuck != NULL)
    stuck_watch_end (&w);
  return r;
}

int
pivot_end_leftover (struct machine *v, const struct adopt_names *names, char **error)
{
  struct job job;

  if (look (v, names->job, &job, error) == -1)
    return -1;
  text_free (job.error);
  return job.exists ? stop_job (v, names->job, error) : 0;
}
