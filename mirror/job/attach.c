/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A live mirror attaches to the filter: it gets the region in which the filter counts what the
 * guest writes, and the counters of the job's earlier workers.  check.h comes before this.
 */

#include "config.h"

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "base/text.h"
#include "dirty-bitmap/bitmap.h"
#include "mirror/job/check.h"
#include "mirror/job/internal.h"

/* Attached to the filter INSTANCE: what an old worker may have had in flight goes into quarantine
 * before the file says that this filter knows of it. */
static void
take_over_the_past (struct job *j, const char *instance)
{
  char *error = NULL;

  j->unknown_past = worker_lock_unknown_past (&j->lock, instance);
  if (j->unknown_past) {
    bitmap_set (j->region, REGION_QUARANTINE, 0, j->region->geo.nr_blocks);
    /* Only what is copied leaves quarantine. */
    bitmap_set (j->region, REGION_DIRTY, 0, j->region->geo.nr_blocks);
    atomic_fetch_add (&j->region->hdr->given_back, 1); /* for the state file: no guest did it */
    job_say (j, JOB_NOTICE,
             "%s: an earlier worker did not end in order, and its server has gone: its last writes"
             " may still come late, so everything is read back once it is copied",
             j->lock.path);
  }
  if (worker_lock_attached (&j->lock, instance, &error) == -1) {
    job_say (j, JOB_WARNING, "%s", error);
    text_free (error);
  }
}

static double
number (json_t *o, const char *key)
{
  return json_number_value (json_object_get (o, key));
}

/* A resumed job goes on counting where its last worker stopped. */
static void
take_over_counters (struct job *j, json_t *old)
{
  j->base.reconnects = (uint64_t)number (old, "reconnects");
  j->base.passes = (uint64_t)number (old, "passes");
  j->base.degraded_s = number (old, "degraded-s");
  j->base.total_s = number (old, "total-s");
}

bool
job_resumes (const struct job *j)
{
  return j->o->start == JOB_RESUME || j->o->start == JOB_RESUME_OR_RESTART;
}

int
job_take_region (struct job *j, int fd)
{
  char *error = NULL;

  if (fd == -1)
    text_error (&error, "the filter passed no region");
  else {
    j->region = region_map (fd, &error);
    close (fd);
  }
  if (j->region)
    return 0;
  job_say (j, JOB_ERROR, "%s: %s", j->o->control, error);
  text_free (error);
  return -1;
}

/* Can the copiers read the source in the blocks that the filter tracks? */
static int
check_geometry (struct job *j)
{
  const struct region_geometry *geo = &j->region->geo;
  const struct endpoint_info *source = endpoint_info (j->source);

  if (geo->disk_size != source->size) {
    job_say (j, JOB_ERROR, "%s: the filter tracks %" PRIu64 " bytes but %s has %" PRIu64,
             j->o->control, geo->disk_size, endpoint_name (j->source), source->size);
    return -1;
  }
  if (source->min_block > geo->block_size) {
    job_say (j, JOB_ERROR,
             "%s takes requests of at least %" PRIu32 " bytes, but blocks of %" PRIu32
             " bytes are tracked: choose a larger block size (mirror-block-size=)",
             endpoint_name (j->source), source->min_block, geo->block_size);
    return -1;
  }
  return 0;
}

/* Ask the filter.  Its answer, a new reference; or NULL with *CLASS_ (may be NULL) and *ERROR. */
static json_t *
ask_filter (struct job *j, const char *start, int *fd, char **class_, char **error)
{
  json_t *ret = NULL;
  struct control_call call
      = { .command = "mirror-attach",
          .args = json_pack ("{s:s, s:s*}", "start", start, "since", j->o->sync.since),
          .timeout_ms = JOB_CONTROL_TIMEOUT_MS,
          .ret = &ret,
          .got_fd = fd,
          .class_ = class_ };
  return control_client_call (j->control, &call, error) == 0 ? ret : NULL;
}

/* The filter has refused.  Frees CLASS_ and ERROR. */
static void
say_refusal (struct job *j, char *class_, char *error)
{
  static const char *const refusals[]
      = { "JobExists", "WorkerAttached", "Fenced", "NothingToResume", "NoCheckpoint" };

  j->result = JOB_FAILED;
  for (size_t i = 0; class_ != NULL && i < sizeof refusals / sizeof refusals[0]; i++)
    if (strcmp (class_, refusals[i]) == 0)
      j->result = JOB_REFUSED;
  if (class_ && strcmp (class_, "JobExists") == 0)
    job_say (j, JOB_ERROR, JOB_LEFT_OVER, j->o->control);
  else if (class_ && strcmp (class_, "NothingToResume") == 0)
    job_say (j, JOB_ERROR, JOB_NOTHING_LEFT, j->o->control);
  else
    job_say (j, JOB_ERROR, "%s: %s", j->o->control, error);
  text_free (class_);
  text_free (error);
}

/* An earlier worker may have had another mode, and have left out more.  0, or -1 after telling why
 * not (R13). */
static int
recognise (struct job *j)
{
  static const enum job_result results[] = { [SESSION_UNREACHABLE] = JOB_DEST_FAILED,
                                             [SESSION_REFUSED] = JOB_REFUSED,
                                             [SESSION_SOURCE] = JOB_FAILED };
  enum session_problem problem = SESSION_UNREACHABLE;

  if (atomic_load (&j->region->hdr->sent_is_durable) != 0)
    return 0;
  CLEANUP_TEXT char *error = look_again (&j->look_again, j->dest.opened, &problem);
  if (error == NULL)
    return 0;
  int signal = atomic_load (j->o->signal);
  if (problem == SESSION_SOURCE && signal != JOB_SIGNAL_NONE) { /* as at any other time */
    j->result = signal == JOB_SIGNAL_CANCEL ? JOB_CANCELLED : JOB_DETACHED;
    return -1;
  }
  j->result = results[problem];
  job_say (j, JOB_ERROR, "%s%s", problem == SESSION_REFUSED ? "refused: " : "", error);
  return -1;
}

static int
attach (struct job *j)
{
  static const char *const starts[] = { [JOB_NEW] = "new",
                                        [JOB_RESUME] = "resume",
                                        [JOB_RESTART] = "restart",
                                        [JOB_RESUME_OR_RESTART] = "resume" };
  char *error = NULL, *class_ = NULL;
  int fd = -1;

  json_t *ret = ask_filter (j, starts[j->o->start], &fd, &class_, &error);
  if (ret == NULL && j->o->start == JOB_RESUME_OR_RESTART && class_
      && strcmp (class_, "NothingToResume") == 0) {
    text_free (class_);
    text_free (error);
    class_ = error = NULL;
    ret = ask_filter (j, "new", &fd, &class_, &error);
  }
  if (ret == NULL) {
    say_refusal (j, class_, error);
    return -1;
  }
  bool resumed = json_is_true (json_object_get (ret, "resumed"));
  j->fresh = !resumed;
  if (resumed)
    take_over_counters (j, json_object_get (ret, "job"));
  else if (job_resumes (j))
    job_say (j, JOB_NOTICE, "%s: nothing to resume: starting %s", j->o->control,
             j->o->sync.since != NULL ? "with what was changed" : "a full copy");
  if (job_take_region (j, fd) == -1) {
    json_decref (ret);
    return -1;
  }
  j->persistent = !json_is_false (json_object_get (ret, "persistent"));
  take_over_the_past (j, json_string_value (json_object_get (ret, "instance")));
  /* A worker that is killed from now on leaves a destination that can be recognised. */
  if (!resumed)
    found_samples_keep (&j->found, j->region);
  int r = check_geometry (j);
  j->look_again = (struct look_again){
    .region = j->region, .source = j->source, .base = j->base_image, .signal = j->o->signal
  };
  j->dest.look_again = look_again;
  j->dest.opaque = &j->look_again;
  if (r == 0 && resumed)
    r = recognise (j);
  if (r == 0)
    r = job_checkpoint_begin (j, resumed ? json_object_get (ret, "job") : NULL);
  json_decref (ret);
  return r;
}

int
job_attach (struct job *j)
{
  char *error = NULL;
  json_t *status;

  int r = job_check (j, &status) == 0 ? attach (j) : -1;
  json_decref (status);
  if (r == -1)
    return -1;

  const struct engine_options eo = {
    .max_connections = j->o->max_connections,
    .rate_limit = j->rate_limit,
    .budget = j->o->budget,
    .grace_ns = j->o->grace_ns,
    .neighbours = sync_may_send_clean (j->o->sync.mode, j->persistent),
    .sync = j->o->sync.mode,
    .sparse = j->o->sparse,
    .base = j->o->sync.mode == ENGINE_SYNC_BASE ? j->base_image : NULL,
  };
  if (engine_init (&j->engine, j->region, j->source, &eo, &error) == -1) {
    job_say (j, JOB_ERROR, "%s", error);
    text_free (error);
    return -1;
  }
  j->engine_ready = true;
  return 0;
}
