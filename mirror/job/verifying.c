/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * When a live job is verified (live-verify.h): when a user asks for it, or by itself when the job
 * is ready (`mirror --verify`).  By itself it is repeated until one verification finds no
 * difference, at most VERIFY_ATTEMPTS times; a job that completes by itself waits for that.
 */

#include "config.h"

#include <inttypes.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "mirror/job/internal.h"

#define VERIFY_ATTEMPTS 3
#define QUERY_TIMEOUT_MS 1000

int
job_verify_start (struct job *j, char **error)
{
  struct job_verify *v = &j->verify;

  if (v->live != NULL)
    return 0;
  v->live = live_verify_start (&j->engine, j->source, j->o->dest.dest, j->o->dest.nr_dest,
                               &j->o->dest.endpoint, error);
  if (v->live == NULL)
    return -1;
  text_free (v->error);
  v->error = NULL;
  v->attempts++;
  v->told = 0;
  v->last = live_verify_look (v->live);
  return 0;
}

void
job_verify_stop (struct job *j, const char *why)
{
  if (j->verify.live != NULL)
    live_verify_stop (j->verify.live, why);
}

bool
job_verify_active (const struct job *j)
{
  return j->verify.live != NULL || (j->o->verify && !j->verify.good);
}

/* Nothing that was in flight before this call is, if the filter says so: then tell. */
static void
look_for_quiet (struct job *j)
{
  uint64_t since = clock_ns ();
  json_t *status = NULL;
  char *error = NULL;

  struct control_call call
      = { .command = "query-mirror", .timeout_ms = QUERY_TIMEOUT_MS, .ret = &status };
  if (control_client_call (j->control, &call, &error) == -1)
    text_free (error); /* a lost connection shows in job_handle_events() */
  const json_t *in_flight = json_object_get (status, "in-flight");
  if (json_is_integer (in_flight) && json_integer_value (in_flight) == 0)
    live_verify_quiet (j->verify.live, since);
  json_decref (status);
}

static void
tell_mismatches (struct job *j)
{
  struct job_verify *v = &j->verify;
  uint64_t found = v->last.mismatches - v->told;

  if (found == 0)
    return;
  job_say (j, JOB_WARNING,
           "verification: %" PRIu64 " block%s of %u bytes differ%s at the destination, the first"
           " found at offset %" PRIu64 "; %s copied again",
           v->last.mismatches, v->last.mismatches == 1 ? "" : "s", j->region->geo.block_size,
           v->last.mismatches == 1 ? "s" : "", v->last.offset,
           v->last.mismatches == 1 ? "it is" : "they are");
  if (v->mismatches == 0)
    v->offset = v->last.offset;
  v->mismatches += found;
  v->told = v->last.mismatches;
}

/* A job that completes by itself does not do so unverified. */
static void
give_up_if_spent (struct job *j)
{
  struct job_verify *v = &j->verify;

  if (v->good || !j->o->verify || v->attempts < VERIFY_ATTEMPTS || !j->o->complete_when_ready)
    return;
  job_say (j, JOB_ERROR,
           "%d verifications, and none without a difference or an error: not handed"
           " over",
           VERIFY_ATTEMPTS);
  job_end (j, v->mismatches > 0 ? JOB_DIFFERENT : JOB_FAILED);
}

/* It has ended. */
static void
settle (struct job *j)
{
  struct job_verify *v = &j->verify;
  bool failed = v->last.state == LIVE_VERIFY_FAILED;

  if (failed)
    v->error = text_copy (v->last.error);
  v->good = !failed && v->last.mismatches == 0;
  live_verify_end (v->live);
  v->live = NULL;
  if (failed)
    job_say (j, JOB_WARNING, "verification: %s", v->error);
  else
    job_say (j, JOB_NOTICE, "verification: %" PRIu64 " bytes are equal%s", v->last.verified_bytes,
             v->last.unsettled_bytes > 0
                 ? "; the rest was never at rest, because the guest writes there all the time"
                 : "");
  job_publish (j);
  give_up_if_spent (j);
}

void
job_verify_step (struct job *j)
{
  struct job_verify *v = &j->verify;
  char *error = NULL;

  if (v->live == NULL) {
    if (j->o->verify && !v->good && v->attempts < VERIFY_ATTEMPTS && j->ready
        && j->final == FINAL_NONE && job_verify_start (j, &error) == -1) {
      job_say (j, JOB_WARNING, "verification: %s", error);
      text_free (error);
      v->attempts = VERIFY_ATTEMPTS;
      give_up_if_spent (j); /* else it would wait for a verification that never runs */
    }
    return;
  }
  if (v->last.wants_quiet && j->final == FINAL_NONE)
    look_for_quiet (j);
  v->last = live_verify_look (v->live);
  tell_mismatches (j);
  if (v->last.state != LIVE_VERIFY_RUNNING)
    settle (j);
}

bool
job_verify_end (struct job *j)
{
  struct job_verify *v = &j->verify;

  bool ended = live_verify_end (v->live);
  v->live = NULL;
  text_free (v->error);
  v->error = NULL;
  return ended;
}

void
job_add_verification (struct job *j, json_t *o)
{
  const struct job_verify *v = &j->verify;
  bool any = v->attempts > 0;

  json_object_set_new (o, "verify",
                       !any               ? json_null ()
                       : v->live != NULL  ? json_string ("running")
                       : v->error != NULL ? json_string ("failed")
                                          : json_string ("done"));
  json_object_set_new (o, "verified-bytes",
                       any ? json_integer ((json_int_t)v->last.verified_bytes) : json_null ());
  json_object_set_new (o, "unsettled-bytes",
                       any && v->live == NULL ? json_integer ((json_int_t)v->last.unsettled_bytes)
                                              : json_null ());
  json_object_set_new (o, "mismatches",
                       any ? json_integer ((json_int_t)v->mismatches) : json_null ());
  json_object_set_new (o, "mismatch-offset",
                       v->mismatches > 0 ? json_integer ((json_int_t)v->offset) : json_null ());
  json_object_set_new (o, "verify-error", v->error != NULL ? json_string (v->error) : json_null ());
}
