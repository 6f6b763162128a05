/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What users are told about the job: query-mirror, query-block-jobs, query-jobs.  The filter's own
 * knowledge overrides what the worker published.  Counters come from shared memory that a worker
 * may have overwritten, so they are cut to what is possible.
 */

#include "config.h"

#include <string.h>
#include <unistd.h>

#include <nbdkit-filter.h>

#include "base/clock.h"
#include "control/wire.h"
#include "dirty-bitmap/bitmap.h"
#include "nbd-plugin/mirror/filter.h"
#include "nbd-plugin/mirror/receiving.h"
#include "nbd-plugin/mirror/status.h"

/* State names are constants, so that they can be kept and compared after the JSON has changed. */
static const char *
published_state (const struct attachment *a)
{
  static const char *const names[]
      = { "copying", "ready", "holding", "paused", "degraded", "throttled", "synchronous" };
  const char *s = json_string_value (json_object_get (a->published, "state"));

  for (size_t i = 0; s != NULL && i < sizeof names / sizeof names[0]; i++)
    if (strcmp (s, names[i]) == 0)
      return names[i];
  return "copying";
}

const char *
mirror_state (struct mirror *m)
{
  struct gate_view gate;

  gate_look (&m->gate, &gate);
  if (gate.mode == GATE_FENCED)
    return "completed";
  if (m->attachment.worker == NULL)
    return m->attachment.ended;
  if (gate.mode == GATE_HELD)
    return gate.prepared ? "prepared" : "holding";
  return published_state (&m->attachment);
}

const char *
mirror_job_status (struct mirror *m)
{
  static const struct {
    const char *state, *status;
  } map[] = { { "idle", "null" },          { "copying", "running" },   { "degraded", "running" },
              { "throttled", "running" },  { "synchronous", "ready" }, { "ready", "ready" },
              { "holding", "waiting" },    { "prepared", "pending" },  { "paused", "paused" },
              { "detached", "paused" },    { "cancelled", "null" },    { "failed", "concluded" },
              { "completed", "concluded" } };
  const char *state = mirror_state (m);

  for (size_t i = 0; i < sizeof map / sizeof map[0]; i++)
    if (strcmp (state, map[i].state) == 0)
      return map[i].status;
  return "running";
}

const char *
mirror_gate_name (const struct gate_view *gate, enum pace_mode pace)
{
  static const char *const names[] = { "open", "throttled", "synchronous" };

  return gate->mode == GATE_HELD ? "held" : gate->mode == GATE_FENCED ? "fenced" : names[pace];
}

/* Bytes that the set bits of the arrays stand for, at most the disk. */
static uint64_t
bytes_in (const struct region *r, enum region_array a)
{
  uint64_t blocks = bitmap_count (r, a);
  if (blocks > r->geo.nr_blocks)
    blocks = r->geo.nr_blocks;
  uint64_t bytes = blocks << r->geo.block_shift;
  return bytes < r->geo.disk_size ? bytes : r->geo.disk_size;
}

static uint64_t
claimed_bytes (const struct region *r)
{
  uint64_t bytes = bytes_in (r, REGION_CLAIMED_A) + bytes_in (r, REGION_CLAIMED_B);
  return bytes < r->geo.disk_size ? bytes : r->geo.disk_size;
}

static json_t *
count (uint64_t n)
{
  return json_integer ((json_int_t)n);
}

/* Sets KEY to VALUE, or to null where VALUE is not KNOWN. Steals VALUE. */
static void
set (json_t *o, const char *key, bool known, json_t *value)
{
  if (!known) {
    json_decref (value);
    value = json_null ();
  }
  json_object_set_new (o, key, value);
}

static void
add_region (json_t *o, const struct region *r)
{
  bool known = r != NULL;

  set (o, "dirty-bytes", known, known ? count (bytes_in (r, REGION_DIRTY)) : NULL);
  set (o, "claimed-bytes", known, known ? count (claimed_bytes (r)) : NULL);
  set (o, "quarantine-bytes", known, known ? count (bytes_in (r, REGION_QUARANTINE)) : NULL);
  set (o, "session", known, known ? count (atomic_load (&r->hdr->session)) : NULL);
  if (known) {
    /* Newer than what a worker published before it died. */
    json_object_set_new (o, "sent-bytes", count (atomic_load (&r->hdr->sent_bytes)));
    json_object_set_new (o, "wire-bytes", count (region_wire_bytes (r)));
    json_object_set_new (o, "zero-bytes", count (atomic_load (&r->hdr->zero_bytes)));
    json_object_set_new (o, "skipped-bytes", count (atomic_load (&r->hdr->skipped_bytes)));
  }
}

static void
add_gate (json_t *o, struct mirror *m)
{
  struct gate_view gate;
  struct pace_view pace;

  gate_look (&m->gate, &gate);
  pace_look (&m->pace, &pace);
  int64_t left = gate.lease_end_ns - (int64_t)clock_ns ();
  bool fenced = gate.mode == GATE_FENCED;
  json_object_set_new (o, "gate", json_string (mirror_gate_name (&gate, pace.mode)));
  set (o, "generation", gate.generation != 0, count (gate.generation));
  set (o, "lease-left-ms", gate.mode == GATE_HELD, json_real ((double)(left > 0 ? left : 0) / 1e6));
  json_object_set_new (o, "in-flight", count (gate_in_flight (&m->gate)));
  json_object_set_new (o, "waiting", count (gate.waiting));
  set (o, "downtime-ms", fenced && m->have_downtime, json_real (m->downtime_ms));
  set (o, "rollback-token", fenced && m->fence.record.token[0] != '\0',
       json_string (m->fence.record.token));
  set (o, "successor", fenced && m->fence.record.successor[0] != '\0',
       json_string (m->fence.record.successor));
}

static void
add_pace (json_t *o, struct mirror *m)
{
  struct pace_view pace;

  pace_look (&m->pace, &pace);
  json_object_set_new (o, "synchronised", json_boolean (pace.synchronised));
  set (o, "dirty-limit", pace.mode == PACE_THROTTLED, count (pace.limit));
  json_object_set_new (o, "max-write-delay-ms", json_real ((double)pace.max_delay_ns / 1e6));
  json_object_set_new (o, "delayed-writes", count (pace.delayed));
  json_object_set_new (o, "missed-writes", count (pace.missed));
  json_object_set_new (o, "longest-write-delay-ms", json_real ((double)pace.longest_ns / 1e6));
}

json_t *
mirror_status (struct mirror *m)
{
  static const char *const of_the_worker[]
      = { "pass",          "sent-bytes",      "zero-bytes",      "bandwidth",
          "dirty-rate",    "bandwidth-limit", "max-downtime-ms", "expected-downtime-ms",
          "eta-s",         "converging",      "synchronised",    "reconnects",
          "degraded-s",    "total-s",         "passes",          "error",
          "target",        "policy",          "sealed",          "sync",
          "skipped-bytes", "wire-bytes",      "base-digest",     "return-checkpoint" };
  struct attachment *a = &m->attachment;
  struct region_geometry geo;
  bool known = tracker_geometry (&m->tracker, &geo);
  json_t *o = json_object ();

  json_object_set_new (o, "id", json_string (DEFAULT_ID));
  json_object_set_new (o, "state", json_null ()); /* its place; the value follows */
  for (size_t i = 0; i < sizeof of_the_worker / sizeof of_the_worker[0]; i++)
    json_object_set_new (o, of_the_worker[i], json_null ());
  json_object_update (o, a->published);
  json_object_set_new (o, "state", json_string (mirror_state (m)));
  set (o, "size", known, known ? count (geo.disk_size) : NULL);
  set (o, "block-size", known, known ? count (geo.block_size) : NULL);
  json_object_set_new (o, "export", json_string (m->config.export));
  /* A worker opens a connection of its own before it attaches, so it has to know where to. */
  json_object_set_new (o, "uri", wire_text_or_null (m->config.uri));
  json_object_set_new (o, "direct", wire_text_or_null (m->config.direct));
  json_object_set_new (o, "disk", wire_text_or_null (m->config.disk));
  json_object_set_new (o, "disk-format", wire_text_or_null (m->config.format));
  json_object_set_new (o, "layers-export", wire_text_or_null (m->config.layers));
  json_object_set_new (o, "opened", count (atomic_load (&m->tracker.opened)));
  json_object_set_new (o, "bypassed", json_boolean (m->bypass.on));
  json_object_set_new (o, "receiving", json_boolean (receiving_is (m)));
  const char *at = handed_over_look (m);
  set (o, "stands-at", at != NULL, at != NULL ? json_string (at) : NULL);
  json_object_set_new (o, "server-pid", json_integer (getpid ()));
  json_object_set_new (o, "nbdkit-version", json_string (NBDKIT_VERSION_STRING));
  json_object_set_new (o, "worker", json_string (a->worker != NULL ? "attached" : "detached"));
  set (o, "worker-pid", a->worker != NULL, json_integer (a->process.pid));
  set (o, "reason", a->reason != NULL, a->reason != NULL ? json_string (a->reason) : NULL);
  add_region (o, a->region);
  add_gate (o, m);
  add_pace (o, m);
  persist_status (m, o);
  json_object_set_new (o, "version", json_string (PACKAGE_VERSION));
  return o;
}

/* ---- as in QMP ---- */

static json_int_t
published_count (struct mirror *m, const char *name)
{
  double v = json_number_value (json_object_get (m->attachment.published, name));
  return v > 0 && v < 9e18 ? (json_int_t)v : 0;
}

static json_int_t
length (struct mirror *m)
{
  struct region_geometry geo;
  return tracker_geometry (&m->tracker, &geo) ? (json_int_t)geo.disk_size : 0;
}

/* QMP's offset: what is done of `len`. */
static json_int_t
offset (struct mirror *m)
{
  const struct region *r = m->attachment.region;
  uint64_t left = r != NULL ? bytes_in (r, REGION_DIRTY) + claimed_bytes (r) : 0;
  uint64_t len = (uint64_t)length (m);
  return left < len ? (json_int_t)(len - left) : 0;
}

json_t *
mirror_block_job_event (struct mirror *m)
{
  return json_pack ("{s:s, s:s, s:I, s:I, s:I}", "type", "mirror", "device", DEFAULT_ID, "len",
                    length (m), "offset", offset (m), "speed",
                    published_count (m, "bandwidth-limit"));
}

json_t *
mirror_block_jobs (struct mirror *m)
{
  const char *state = mirror_state (m), *status = mirror_job_status (m);
  json_t *list = json_array ();

  if (m->attachment.region == NULL)
    return list;
  json_t *o = mirror_block_job_event (m);
  bool paused = strcmp (status, "paused") == 0;
  json_object_set_new (o, "busy", json_boolean (m->attachment.worker != NULL && !paused));
  json_object_set_new (o, "paused", json_boolean (paused));
  json_object_set_new (o, "ready",
                       json_boolean (strcmp (status, "ready") == 0
                                     || strcmp (status, "waiting") == 0
                                     || strcmp (status, "pending") == 0));
  json_object_set_new (o, "status", json_string (status));
  json_object_set_new (o, "io-status",
                       json_string (strcmp (state, "degraded") == 0 ? "failed" : "ok"));
  json_object_set_new (o, "auto-finalize", json_false ());
  json_object_set_new (o, "auto-dismiss", json_true ());
  json_t *error = json_object_get (m->attachment.published, "error");
  if (json_is_string (error))
    json_object_set (o, "error", error);
  else if (strcmp (state, "failed") == 0 && m->attachment.reason != NULL)
    json_object_set_new (o, "error", json_string (m->attachment.reason));
  json_array_append_new (list, o);
  return list;
}

json_t *
mirror_jobs (struct mirror *m)
{
  json_t *list = json_array ();

  if (m->attachment.region != NULL)
    json_array_append_new (list,
                           json_pack ("{s:s, s:s, s:s, s:I, s:I}", "id", DEFAULT_ID, "type",
                                      "mirror", "status", mirror_job_status (m), "current-progress",
                                      offset (m), "total-progress", length (m)));
  return list;
}
