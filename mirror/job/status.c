/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The status object of a live job (nbdmirror(1), "status --json").
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "mirror/job/budget-status.h"
#include "mirror/job/internal.h"

#define REPORT_TIMEOUT_MS 1000

const char *
job_state (struct job *j)
{
  if (j->committed || j->released)
    return "completed";
  if (j->final == FINAL_PREPARED)
    return "prepared";
  if (j->final == FINAL_COPY)
    return "holding";
  if (j->paused)
    return "paused";
  bool lost = j->supervisor.state != SUPERVISOR_COPYING && j->supervisor.ever_copied;
  if (lost || j->source_errors.any)
    return "degraded";
  return j->ready ? "ready" : "copying";
}

static double
total_s (const struct job *j)
{
  return j->base.total_s + (double)(clock_ns () - j->start_ns) / NS_PER_S;
}

static json_t *
number_or_null (bool known, double value)
{
  return known ? json_real (value) : json_null ();
}

/* Where to: a name, or all the words of a command. */
static json_t *
target (const struct job *j)
{
  char text[4096]; /* the filter takes no more */
  size_t n = 0;

  for (unsigned i = 0; i < j->dest.nr_dest && n < sizeof text; i++)
    n += (size_t)snprintf (text + n, sizeof text - n, i ? " %s" : "%s", j->dest.dest[i]);
  if (n >= sizeof text && j->dest.nr_dest == 1)
    return json_null (); /* half a name is none */
  json_t *words = json_string (text);
  return words ? words : json_null (); /* no valid UTF-8 */
}

/* Null: there is nothing to seal. */
static json_t *
sealed (const struct job *j)
{
  return j->is_receive ? json_boolean (j->sealed) : json_null ();
}

/* What is wrong at the destination or the source. */
static void
add_errors (struct job *j, json_t *o)
{
  const struct source_errors *errors = &j->source_errors;
  CLEANUP_TEXT char *text = NULL;

  if (j->supervisor.state != SUPERVISOR_COPYING && j->supervisor.error)
    text = text_copy (j->supervisor.error);
  else if (errors->any)
    text = source_errors_text (errors, &j->engine);
  json_object_set_new (o, "error", text ? json_string (text) : json_null ());
  json_object_set_new (o, "unreadable-bytes",
                       json_integer (errors->any ? (json_int_t)errors->bytes : 0));
  json_object_set_new (o, "unreadable-offset",
                       errors->any ? json_integer ((json_int_t)errors->offset) : json_null ());
}

/* What only the worker knows: published to the filter. */
static json_t *
own_status (struct job *j)
{
  struct engine *e = &j->engine;
  const struct estimate *est = &j->estimate;

  pthread_mutex_lock (&e->lock);
  uint64_t pass = j->base.passes + e->pass_number, passes = j->base.passes + e->nr_passes;
  pthread_mutex_unlock (&e->lock);

  json_t *o = json_pack (
      "{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:f}", "state", job_state (j), "pass",
      (json_int_t)pass, "passes", (json_int_t)passes, "sent-bytes",
      (json_int_t)atomic_load (&j->region->hdr->sent_bytes), "zero-bytes",
      (json_int_t)atomic_load (&j->region->hdr->zero_bytes), "bandwidth-limit",
      (json_int_t)j->rate_limit, "max-downtime-ms", (json_int_t)j->max_downtime_ms, "degraded-s",
      j->base.degraded_s + (double)supervisor_degraded_ns (&j->supervisor) / NS_PER_S, "total-s",
      total_s (j));
  if (o == NULL)
    return NULL;
  json_object_set_new (o, "reconnects",
                       json_integer ((json_int_t)(j->base.reconnects + j->supervisor.reconnects)));
  budget_status_add (o, j->o->budget);
  json_object_set_new (o, "wire-bytes", json_integer ((json_int_t)region_wire_bytes (j->region)));
  json_object_set_new (o, "sync", json_string (sync_name (j->o->sync.mode)));
  json_object_set_new (o, "base-digest",
                       j->base_digest[0] != '\0' ? json_string (j->base_digest) : json_null ());
  json_object_set_new (o, "destination-proved", json_boolean (j->dest_proved));
  json_object_set_new (o, "skipped-bytes",
                       json_integer ((json_int_t)atomic_load (&j->region->hdr->skipped_bytes)));
  json_object_set_new (o, "bandwidth", number_or_null (est->bandwidth > 0, est->bandwidth));
  json_object_set_new (o, "dirty-rate", number_or_null (est->nr_guest > 0, est->dirty_rate));
  json_object_set_new (o, "expected-downtime-ms",
                       number_or_null (est->pause_known, est->expected_pause_ms));
  job_add_convergence (j, o);
  json_object_set_new (o, "policy", json_string (job_policy_name (j->policy)));
  add_errors (j, o);
  job_add_verification (j, o);
  json_object_set_new (o, "target", target (j));
  json_object_set_new (o, "sealed", sealed (j));
  json_object_set_new (o, "return-checkpoint",
                       j->return_uuid[0] != '\0' ? json_string (j->return_uuid) : json_null ());
  return o;
}

void
job_publish (struct job *j)
{
  json_t *o = own_status (j);
  char *error = NULL;

  if (o == NULL)
    return;
  const char *state = job_state (j);
  snprintf (j->state, sizeof j->state, "%s", state);
  /* These two are the filter's to say: it sees them happen. */
  if (!strcmp (state, "prepared") || !strcmp (state, "completed"))
    json_object_del (o, "state");
  if (control_client_send (j->control, "mirror-progress", o, &error) == -1)
    text_free (error); /* a lost connection shows in job_handle_events() */
  j->last_publish_ns = clock_ns ();
}

void
job_publish_sealed (struct job *j, json_t *report)
{
  char *error = NULL;

  if (report)
    json_object_set_new (report, "sealed", sealed (j));
  if (control_client_send (j->control, "mirror-progress", json_pack ("{s:o}", "sealed", sealed (j)),
                           &error)
      == -1)
    text_free (error); /* nobody is left to be told */
}

static json_int_t
bytes_of (const struct region *r, uint64_t blocks)
{
  uint64_t n = blocks << r->geo.block_shift;
  return (json_int_t)(n < r->geo.disk_size ? n : r->geo.disk_size);
}

json_t *
job_status (struct job *j)
{
  const struct region *r = j->region;
  json_t *o = own_status (j);
  if (o == NULL)
    return NULL;
  uint64_t claimed = bitmap_count (r, REGION_CLAIMED_A) + bitmap_count (r, REGION_CLAIMED_B);
  json_t *more = json_pack (
      "{s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:s}", "size", (json_int_t)r->geo.disk_size,
      "block-size", (json_int_t)r->geo.block_size, "dirty-bytes",
      bytes_of (r, bitmap_count (r, REGION_DIRTY)), "claimed-bytes", bytes_of (r, claimed),
      "quarantine-bytes", bytes_of (r, bitmap_count (r, REGION_QUARANTINE)), "session",
      (json_int_t)atomic_load (&r->hdr->session), "gate",
      j->committed             ? "fenced"
      : j->released            ? "open"
      : j->final >= FINAL_COPY ? "held"
                               : job_gate_name (job_gate_now (j)),
      "worker", "attached");
  json_object_update_new (o, more);
  json_object_set_new (o, "dirty-limit",
                       job_gate_now (j) == JOB_GATE_THROTTLED
                           ? json_integer ((json_int_t)j->gate.limit)
                           : json_null ());
  json_object_set_new (o, "synchronised", json_boolean (job_gate_synchronised (j)));
  json_object_set_new (o, "downtime-ms",
                       number_or_null (j->committed || j->released, j->downtime_ms));
  json_object_set_new (o, "rollback-token", j->token ? json_string (j->token) : json_null ());
  return o;
}

/* How the guest's writes fared only the filter knows. */
static void
add_delays (struct job *j, json_t *o)
{
  static const char *const names[]
      = { "max-write-delay-ms", "delayed-writes", "missed-writes", "longest-write-delay-ms", NULL };
  json_t *status = NULL;
  char *error = NULL;

  struct control_call call
      = { .command = "query-mirror", .timeout_ms = REPORT_TIMEOUT_MS, .ret = &status };
  if (control_client_call (j->control, &call, &error) == -1)
    text_free (error);
  for (const char *const *n = names; *n != NULL; n++) {
    json_t *v = json_object_get (status, *n);
    json_object_set_new (o, *n, v ? json_incref (v) : json_null ());
  }
  json_decref (status);
}

json_t *
job_report (struct job *j)
{
  struct engine *e = &j->engine;
  json_t *o = job_status (j), *log = json_array ();

  add_delays (j, o);

  pthread_mutex_lock (&e->lock);
  unsigned first = e->nr_passes > ENGINE_MAX_PASS_LOG ? e->nr_passes - ENGINE_MAX_PASS_LOG : 0;
  for (unsigned i = first; i < e->nr_passes; i++) {
    const struct engine_pass *p = &e->pass_log[i % ENGINE_MAX_PASS_LOG];
    json_array_append_new (
        log, json_pack (
                 "{s:I, s:I, s:I, s:I, s:I, s:f}", "pass", (json_int_t)(j->base.passes + p->number),
                 "left-before", (json_int_t)p->left_before, "left-after", (json_int_t)p->left_after,
                 "sent-bytes", (json_int_t)p->sent_bytes, "zero-bytes", (json_int_t)p->zero_bytes,
                 "seconds", (double)(p->end_ns - p->start_ns) / NS_PER_S));
  }
  pthread_mutex_unlock (&e->lock);
  json_object_set_new (o, "pass-log", log);
  json_object_set_new (o, "unreadable", source_errors_json (&j->source_errors, e));
  json_object_set_new (o, "worker", json_string ("detached"));
  return o;
}
