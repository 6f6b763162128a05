/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The end of a live mirror job: the filter is told, nothing that was sent can come late, and all is
 * given back.
 */

#include "config.h"

#include <pthread.h>
#include <stdlib.h>
#include <jansson.h>

#include "base/text.h"
#include "mirror/job/internal.h"

static const char *
detach_state (enum job_result r)
{
  switch (r) {
  case JOB_COMPLETED:
    return "completed";
  case JOB_CANCELLED:
    return "cancelled";
  case JOB_DETACHED:
    return "detached";
  default:
    return "failed";
  }
}

/* Tell the filter how it ended.  A full job that never copied anything leaves nothing behind to
 * resume. */
static void
say_goodbye (struct job *j)
{
  bool nothing_done = j->fresh && !j->supervisor.ever_copied;
  const char *state = nothing_done ? "cancelled" : detach_state (j->result);
  const char *why = j->supervisor.error;
  char *error = NULL;

  struct control_call call
      = { .command = "mirror-detach",
          .args = json_pack ("{s:s, s:s}", "state", state, "reason", why ? why : ""),
          .timeout_ms = JOB_CONTROL_TIMEOUT_MS };
  if (control_client_call (j->control, &call, &error) == -1)
    text_free (error); /* the server has gone, and the job with it */
}

/* Nothing that this job or one before it has sent can come late any more. */
static bool
nothing_left (struct job *j)
{
  if (j->region == NULL)
    return !j->lock.left_behind;
  return j->engine_ready ? !j->engine.unanswered : bitmap_empty (j->region, REGION_QUARANTINE);
}

/* The job ends for another reason, and some of the source was not read. */
static void
say_what_is_unreadable (struct job *j)
{
  source_errors_look (&j->source_errors, &j->engine);
  if (!j->source_errors.any || j->result == JOB_FAILED)
    return;
  CLEANUP_TEXT char *why = source_errors_text (&j->source_errors, &j->engine);
  job_say (j, JOB_WARNING, "source: not copied: %s", why);
}

/* The server ended after our hand-off was committed, before it said so. */
static enum job_result
say_unconfirmed (struct job *j)
{
  const char *control = j->o->control, *token = j->handoff_result.token;

  job_say (j, JOB_ERROR,
           "%s: the disk was handed over (rollback token %s), but its server ended before it"
           " confirmed that: serve it again with this control socket, and say 'nbdmirror complete"
           " %s --commit --token %s' before the guest is started at the destination",
           control, token, control, token);
  return JOB_NOT_SEALED;
}

void
job_free (struct job *j)
{
  if (j->dest.opened)
    endpoint_close (j->dest.opened);
  if (j->source)
    endpoint_close (j->source);
  if (j->base_image)
    endpoint_close (j->base_image);
  incremental_free (&j->incremental);
  region_free (j->region);
  text_free (j->since);
  free (j);
}

enum job_result
job_finish (struct job *j, json_t **report)
{
  enum job_result result = j->result;
  bool stopped = true;

  /* The report tells the state at the end, not what taking the session down makes of the books. */
  job_verify_stop (j, "the job has ended");
  if (j->supervising) {
    say_what_is_unreadable (j);
    if (!j->committed && j->supervisor.state == SUPERVISOR_COPYING)
      job_checkpoint_flush (j);
    job_publish (j);
    *report = job_report (j);
    job_gate_end (j);
    bell_stop (&j->bell);
    bool copying = j->supervisor.state == SUPERVISOR_COPYING;
    if (j->over)
      atomic_store (j->o->signal, JOB_SIGNAL_DETACH); /* it may be waiting for a guest's write */
    stopped = supervisor_stop (&j->supervisor);
    if (stopped && copying && !j->committed)
      job_checkpoint_end (j, *report);
    if (j->committed) {
      result = job_seal (j);
      job_publish_sealed (j, *report);
    }
  }
  if (j->region && j->control)
    say_goodbye (j);
  if (j->handing_off)
    pthread_join (j->handoff_thread, NULL);
  if (j->handoff_result.committed && !j->committed)
    result = say_unconfirmed (j);
  if (j->control)
    control_client_free (j->control);
  worker_lock_release (&j->lock, nothing_left (j));
  if (!job_verify_end (j))
    stopped = false;
  if (!stopped)
    return result; /* a connection that is still being made uses the rest until the process ends */
  if (j->engine_ready)
    engine_destroy (&j->engine);
  text_free (j->handoff_error);
  coordinator_result_free (&j->handoff_result);
  free (j->token);
  job_free (j);
  return result;
}
