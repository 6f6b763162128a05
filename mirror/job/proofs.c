/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Before a live mirror attaches: is the destination such that blocks may be left out?  It is the
 * base that the user has named, or stands at the checkpoint.
 */

#include "config.h"

#include <string.h>
#include <jansson.h>

#include "base/text.h"
#include "mirror/job/base-proof.h"
#include "mirror/job/internal.h"

int
job_refuse_destination (struct job *j, char *why)
{
  job_say (j, JOB_ERROR, "refused: %s", why);
  text_free (why);
  j->result = JOB_REFUSED;
  return -1;
}

/* A job is left over that this one does not go on with in the same mode.  The blocks that it has
 * not visited need not hold a base, or nobody knows any more which ones it has visited. */
static bool
other_job_wrote (struct job *j, json_t *status)
{
  const char *old = json_string_value (json_object_get (status, "sync"));

  return json_is_integer (json_object_get (status, "dirty-bytes"))
         && (!job_resumes (j) || old == NULL || strcmp (old, sync_name (j->o->sync.mode)) != 0);
}

/* The filter does not know yet that this client is its worker, and one that is silent for long
 * gives way to a new one (control/server.c).  A proof may take hours, and it tells how far it is.
 * Without its filter it is for nothing, and its connections keep the server from ending. */
static void
tell_of_proof (void *opaque, enum job_message kind, const char *text)
{
  struct job *j = opaque;

  job_say (j, kind, "%s", text);
  json_t *status = job_query (j);
  if (status == NULL && control_client_is_lost (j->control)) { /* not only slow to answer */
    j->lost = true;
    atomic_store (j->o->signal, JOB_SIGNAL_DETACH);
  }
  json_decref (status);
}

/* A job that is left over is cancelled before this worker has attached.  If it cannot be, it stays,
 * and that is said. */
static void
drop_left_over (struct job *j)
{
  CLEANUP_TEXT char *error = NULL;
  const struct control_call call = { .command = "block-job-cancel",
                                     .args = json_pack ("{s:s}", "device", "mirror"),
                                     .timeout_ms = JOB_CONTROL_TIMEOUT_MS };

  if (control_client_call (j->control, &call, &error) == -1)
    job_say (j, JOB_WARNING, "the job that is left over was not cancelled: %s", error);
}

/* A proof has ended with RESULT and WHY, which this frees.  0, or -1 with j->result set and the
 * message said.  LEFT_OVER: there is a job.  It stays unless it is cancelled, and in a dry run. */
static int
end_proof (struct job *j, bool left_over, enum job_result result, char *why)
{
  if (result == JOB_COMPLETED && !j->lost)
    return 0;
  j->result = j->lost ? JOB_FAILED : result;
  bool stopped = j->result == JOB_CANCELLED && left_over && !j->dry;
  if (stopped && atomic_load (j->o->signal) == JOB_SIGNAL_DETACH)
    j->result = JOB_DETACHED; /* as at any other time */
  else if (!j->lost)
    job_say (j, JOB_ERROR, "%s", why);
  if (stopped && atomic_load (j->o->signal) == JOB_SIGNAL_CANCEL)
    drop_left_over (j);
  text_free (why);
  return -1;
}

/* Nothing is left out because of a base that the destination may not have. */
static int
prove_base (struct job *j, json_t *status)
{
  const struct session_options *d = &j->dest;
  bool left_over = json_is_integer (json_object_get (status, "dirty-bytes"));
  char *error = NULL;

  if (j->o->sync.trust_base && other_job_wrote (j, status))
    return job_refuse_destination (
        j, text_printf ("the job that is left over has written to its destination, so that it may"
                        " not be as its base any more: use --sync compare; or nbdmirror cancel %s"
                        " first if the destination is a new one",
                        j->o->control));
  if (j->base_image == NULL || j->dry)
    return 0;
  const struct base_proof proof = {
    .sync = &j->o->sync,
    .base = j->base_image,
    .source = j->source,
    .dest = d->opened,
    .dest_argv = d->dest,
    .nr_dest = d->nr_dest,
    .dest_options = &d->endpoint,
    .size = (uint64_t)json_integer_value (json_object_get (status, "size")),
    .block_size = (uint32_t)json_integer_value (json_object_get (status, "block-size")),
    .resumed = left_over && !other_job_wrote (j, status),
    .other_wrote = left_over && other_job_wrote (j, status),
    .recorded = json_string_value (json_object_get (status, "base-digest")),
    .signal = j->o->signal,
    .opaque = j,
    .message = tell_of_proof,
  };
  enum job_result result = base_prove (&proof, j->base_digest, &j->found, &error);
  return end_proof (j, left_over, result, error);
}

/* Nothing is left out because of a checkpoint at which the destination may not stand. */
static int
prove_checkpoint (struct job *j, json_t *status)
{
  bool left_over = json_is_integer (json_object_get (status, "dirty-bytes"));
  struct incremental *inc = &j->incremental;
  char *error = NULL;

  /* A resumed job knows what is left, and recognises its destination. */
  if (j->o->sync.mode != ENGINE_SYNC_INCREMENTAL || (left_over && job_resumes (j)))
    return 0;
  inc->sync = &j->o->sync;
  inc->control = j->control;
  inc->found = &j->found;
  enum job_result result = incremental_ask (inc, &error);
  if (result == JOB_COMPLETED)
    result = incremental_prove (inc, j->source, j->dest.opened,
                                j->dest.nr_dest == 1 ? j->dest.dest[0] : NULL, j->o->signal, j,
                                tell_of_proof, &error);
  return end_proof (j, left_over, result, error);
}

int
job_prove (struct job *j, json_t *status)
{
  return prove_base (j, status) == 0 && prove_checkpoint (j, status) == 0 ? 0 : -1;
}
