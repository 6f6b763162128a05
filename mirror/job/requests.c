/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What reaches a live job through the filter: requests of users, relayed (MIRROR_REQUEST), and the
 * filter's own events.  nbdmirror-control(7) describes them.
 */

#include "config.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "control/settings.h"
#include "mirror/job/internal.h"

void
job_reply (struct job *j, int64_t request, const char *class_, const char *fmt, ...)
{
  char *error = NULL;
  va_list ap;

  va_start (ap, fmt);
  char *desc = text_vprintf (fmt, ap);
  va_end (ap);
  json_t *args = class_ ? json_pack ("{s:I, s:{s:s, s:s}}", "request", (json_int_t)request, "error",
                                     "class", class_, "desc", desc)
                        : json_pack ("{s:I, s:{}}", "request", (json_int_t)request, "return");
  if (control_client_send (j->control, "mirror-reply", args, &error) == -1)
    text_free (error); /* a lost connection shows with the next event */
  text_free (desc);
}

static void
ok (struct job *j, int64_t request)
{
  job_reply (j, request, NULL, "%s", "");
}

/* Done, but there is something to know about it. */
static void
ok_but (struct job *j, int64_t request, const char *note)
{
  char *error = NULL;
  if (control_client_send (
          j->control, "mirror-reply",
          json_pack ("{s:I, s:{s:s}}", "request", (json_int_t)request, "return", "note", note),
          &error)
      == -1)
    text_free (error);
}

/* ---- requests ---- */

static void
set_rate_limit (struct job *j, json_t *rate)
{
  j->rate_limit = (uint64_t)json_integer_value (rate);
  engine_set_rate (&j->engine, j->rate_limit);
}

static void
set_speed (struct job *j, int64_t request, json_t *args, const char *key)
{
  json_t *v = json_object_get (args, key);
  if (!json_is_integer (v) || json_integer_value (v) < 0) {
    job_reply (j, request, "GenericError", "%s must be a number of bytes a second, 0 for no limit",
               key);
    return;
  }
  set_rate_limit (j, v);
  job_publish (j); /* before the answer: who asked may look at once */
  ok (j, request);
}

/* All values are looked at before the first one is taken. */
static void
set_options (struct job *j, int64_t request, json_t *args)
{
  json_t *limit = json_object_get (args, "bandwidth-limit");
  json_t *down = json_object_get (args, "max-downtime-ms");
  json_t *policy = json_object_get (args, "policy");
  json_t *sync = json_object_get (args, "synchronous");
  json_t *delay = json_object_get (args, "max-write-delay-ms");
  const char *why = settings_fault (args);

  if (why != NULL) {
    job_reply (j, request, "GenericError", "%s", why);
    return;
  }
  if (limit)
    set_rate_limit (j, limit);
  if (delay)
    j->gate.max_write_delay_ms = (uint64_t)json_integer_value (delay);
  if (down)
    j->max_downtime_ms = (uint64_t)json_integer_value (down);
  if (policy && job_policy_parse (json_string_value (policy), &j->policy))
    j->told_not_converging = false;
  bool told = (sync ? job_gate_by_hand (j, json_is_true (sync)) : job_gate_update (j)) != -1;
  job_publish (j); /* before the answer, as above */
  if (told)
    ok (j, request);
  else
    ok_but (j, request, "the filter could not be told about the gate yet");
}

static void
set_paused (struct job *j, int64_t request, bool paused)
{
  if (paused && j->final != FINAL_NONE) {
    job_reply (j, request, "Busy", "the job is %s: a hand-over is under way", job_state (j));
    return;
  }
  j->paused = paused;
  j->stall.since_ns = 0; /* nothing was to move while it was paused */
  job_set_ready (j, false);
  engine_set_paused (&j->engine, paused);
  estimate_lost (&j->estimate);
  ok (j, request);
  job_publish (j);
}

static void
cancel (struct job *j, int64_t request)
{
  switch (job_final_abort (j, "GenericError", "the job was cancelled")) {
  case FINAL_TOO_LATE:
    job_reply (j, request, "AlreadyCommitted", "the hand-over is committed; use rollback");
    return;
  case FINAL_UNKNOWN:
    job_reply (j, request, "Busy", "a hand-over is being decided: try again");
    return;
  default:
    ok (j, request);
    job_end (j, JOB_CANCELLED);
  }
}

static void
complete (struct job *j, int64_t request)
{
  if (!j->ready || j->paused) {
    job_reply (j, request, "NotReady", "the job is not ready: it is %s", job_state (j));
    return;
  }
  ok (j, request);
  j->complete_wanted = true;
}

static void
verify (struct job *j, int64_t request, json_t *args)
{
  char *error = NULL;

  if (json_is_true (json_object_get (args, "stop"))) {
    job_verify_stop (j, "stopped by the user");
    ok (j, request);
    return;
  }
  if (!j->ready || j->final != FINAL_NONE)
    job_reply (j, request, "NotReady", "the job is not ready: it is %s", job_state (j));
  else if (job_verify_start (j, &error) == -1)
    job_reply (j, request, "GenericError", "%s", error);
  else {
    job_publish (j); /* before the answer: who asked then asks how it goes */
    ok (j, request);
  }
  text_free (error);
}

static void
prepare (struct job *j, int64_t request, json_t *args)
{
  json_int_t lease = json_integer_value (json_object_get (args, "lease-ms"));
  job_final_begin (j, request, lease > 0 ? (uint64_t)lease : 2 * j->max_downtime_ms,
                   json_is_true (json_object_get (args, "guest-stopped")),
                   json_is_true (json_object_get (args, "arm")));
}

static void
handle_request (struct job *j, json_t *data)
{
  int64_t request = json_integer_value (json_object_get (data, "request"));
  const char *name = json_string_value (json_object_get (data, "execute"));
  json_t *args = json_object_get (data, "arguments");

  if (name == NULL)
    return;
  if (!strcmp (name, "prepare"))
    prepare (j, request, args);
  else if (!strcmp (name, "block-job-set-speed"))
    set_speed (j, request, args, "speed");
  else if (!strcmp (name, "mirror-set"))
    set_options (j, request, args);
  else if (!strcmp (name, "block-job-pause"))
    set_paused (j, request, true);
  else if (!strcmp (name, "block-job-resume"))
    set_paused (j, request, false);
  else if (!strcmp (name, "block-job-cancel"))
    cancel (j, request);
  else if (!strcmp (name, "mirror-verify"))
    verify (j, request, args);
  else if (!strcmp (name, "block-job-complete"))
    complete (j, request);
  else
    job_reply (j, request, "CommandNotFound", "this worker does not know '%s'", name);
}

/* ---- events ---- */

static void
handle_committed (struct job *j, json_t *data)
{
  const char *token = json_string_value (json_object_get (data, "rollback-token"));

  j->released = json_is_true (json_object_get (data, "released"));
  j->committed = !j->released;
  j->downtime_ms = json_number_value (json_object_get (data, "downtime-ms"));
  free (j->token);
  j->token = token ? strdup (token) : NULL;
  job_end (j, JOB_COMPLETED);
}

static void
handle_event (struct job *j, const char *name, json_t *data)
{
  if (!strcmp (name, "MIRROR_REQUEST"))
    handle_request (j, data);
  else if (!strcmp (name, "MIRROR_COMMITTED"))
    handle_committed (j, data);
  else if (!strcmp (name, "MIRROR_HELD"))
    job_final_held (j, (uint64_t)json_integer_value (json_object_get (data, "generation")));
  else if (!strcmp (name, "MIRROR_RELEASED")) {
    const char *reason = json_string_value (json_object_get (data, "reason"));
    uint64_t generation = (uint64_t)json_integer_value (json_object_get (data, "generation"));
    /* Generation 0: the hand-off was given up before anything was held for it.  Armed, we have not
     * been told of a hold. */
    bool ours = j->final >= FINAL_COPY ? generation == j->generation
                                       : generation == 0 || j->final == FINAL_ARMED;
    if (ours)
      job_final_released (j, reason ? reason : "no reason given");
  } else if (!strcmp (name, "MIRROR_SHUTDOWN")) {
    job_say (j, JOB_ERROR, "%s: the server is shutting down", j->o->control);
    job_end (j, JOB_FAILED);
  } else if (!strcmp (name, "ERROR")) {
    const char *what = json_string_value (json_object_get (data, "execute"));
    const char *desc = json_string_value (json_object_get (data, "desc"));
    /* Progress is published several times a second: say it once. */
    if (!j->complained)
      job_say (j, JOB_WARNING, "%s: %s: %s", j->o->control, what ? what : "?", desc ? desc : "?");
    j->complained = true;
  }
}

int
job_handle_events (struct job *j)
{
  char *name = NULL, *error = NULL;
  json_t *data = NULL;
  int r;

  while (!j->over && (r = control_client_next_event (j->control, 0, &name, &data, &error)) != 0) {
    if (r == -1) {
      job_say (j, JOB_ERROR, "%s", error); /* it names the socket */
      text_free (error);
      job_end (j, JOB_FAILED);
      return -1;
    }
    handle_event (j, name, data);
    free (name);
    json_decref (data);
    name = NULL;
    data = NULL;
  }
  return 0;
}
