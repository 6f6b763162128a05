/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The job record: attaching and losing a worker, and the requests that wait for it.  See job.h.
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <nbdkit-filter.h>

#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/claims.h"
#include "nbd-plugin/mirror/participant.h"
#include "nbd-plugin/mirror/attachment.h"
#include "nbd-plugin/mirror/measure.h"

void
job_random_uuid (uint8_t uuid[16])
{
  if (getentropy (uuid, 16)
      == -1) { /* no worse than a clock: it only tells regions and filters apart */
    int64_t now = gate_now ();
    memset (uuid, 0, 16);
    memcpy (uuid, &now, sizeof now);
  }
  uuid[6] = (uint8_t)((uuid[6] & 0x0f) | 0x40);
  uuid[8] = (uint8_t)((uuid[8] & 0x3f) | 0x80);
}

static void
name_instance (struct job *j)
{
  uint8_t u[16];
  char *at = j->instance;

  job_random_uuid (u);
  for (unsigned i = 0; i < 16; i++)
    at += sprintf (at, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", u[i]);
}

void
job_init (struct job *j)
{
  memset (j, 0, sizeof *j);
  process_init (&j->process);
  name_instance (j);
  j->ended = "idle";
  j->published = json_object ();
}

static void
answer_free (struct waiting_answer *w)
{
  json_decref (w->id);
  json_decref (w->args);
  memset (w, 0, sizeof *w);
}

void
job_free (struct mirror *m)
{
  struct job *j = &m->job;
  struct relay *r;

  while ((r = j->relays) != NULL) {
    j->relays = r->next;
    relay_free (r);
  }
  answer_free (&j->hold);
  answer_free (&j->attach);
  pace_end (&m->pace);
  measure_end (m);
  if (j->region != NULL)
    tracker_remove (&m->tracker, j->region);
  region_free (j->region);
  region_free (j->ghost);
  process_forget (&j->process);
  json_decref (j->published);
  free (j->reason);
  memset (j, 0, sizeof *j);
  process_init (&j->process);
}

/* ---- the ghost: what requests of a dropped job may still hit (R12) ---- */

static bool
holds_claims (const struct region *r)
{
  return !bitmap_empty (r, REGION_CLAIMED_A) || !bitmap_empty (r, REGION_CLAIMED_B)
         || !bitmap_empty (r, REGION_QUARANTINE);
}

static void
quarantine_from (struct region *to, const struct region *from)
{
  bitmap_or (to, REGION_QUARANTINE, from, REGION_CLAIMED_A);
  bitmap_or (to, REGION_QUARANTINE, from, REGION_CLAIMED_B);
  bitmap_or (to, REGION_QUARANTINE, from, REGION_QUARANTINE);
}

/* Once the process has ended only its unfinished blocks matter: keep those alone, in a region whose
 * other pages were never touched. */
static void
shrink_ghost (struct job *j)
{
  struct region *old = j->ghost, *small = NULL;
  char *error = NULL;

  if (old == NULL || !process_ended (&j->process))
    return;
  if (holds_claims (old)) {
    if (bitmap_empty (old, REGION_DIRTY))
      return; /* small already */
    small = region_create (&old->geo, old->tracker_uuid, &error);
    free (error);
    if (small == NULL)
      return;
    quarantine_from (small, old);
  }
  j->ghost = small;
  region_free (old);
}

void
job_drop_region (struct mirror *m)
{
  struct job *j = &m->job;
  struct region *old = j->region;

  if (old == NULL)
    return;
  pace_end (&m->pace); /* waiters sleep on words of the region */
  tracker_remove (&m->tracker, old);
  j->region = NULL;
  if (j->ghost != NULL) {
    quarantine_from (old, j->ghost);
    region_free (j->ghost);
  }
  j->ghost = old;
  shrink_ghost (j);
}

/* ---- attach ---- */

int64_t
job_default_lease_ms (const struct job *j)
{
  double ms = json_number_value (json_object_get (j->published, "max-downtime-ms"));

  if (ms <= 0)
    ms = DEFAULT_MAX_DOWNTIME_MS;
  ms *= 2;
  return ms >= (double)MAX_LEASE_MS ? MAX_LEASE_MS : ms < 1 ? 1 : (int64_t)ms;
}

/* A fresh region in the tracker's table, holding what START says.  The old one is gone then. */
static struct region *
fresh_region (struct mirror *m, const char *start, bool *resumed, char **error)
{
  struct job *j = &m->job;
  struct region *old = j->region;
  struct region_geometry geo;
  uint8_t uuid[16];

  tracker_geometry (&m->tracker, &geo);
  job_random_uuid (uuid);
  struct region *fresh = region_create (&geo, uuid, error);
  if (fresh == NULL)
    return NULL;
  if (tracker_add (&m->tracker, fresh) == -1) {
    region_free (fresh);
    *error = strdup ("too many regions");
    return NULL;
  }
  *resumed = old != NULL && strcmp (start, "resume") == 0;
  if (*resumed)
    region_merge (fresh, old);
  else {
    bitmap_set (fresh, REGION_DIRTY, 0, geo.nr_blocks);
    atomic_store (&fresh->hdr->session, 1);
    if (old != NULL)
      quarantine_from (fresh, old); /* its last requests may come late at the same destination */
  }
  if (j->ghost != NULL)
    quarantine_from (fresh, j->ghost);
  pace_end (&m->pace);
  measure_end (m); /* the worker's numbers are better */
  region_free (j->ghost);
  j->ghost = NULL;
  if (old != NULL)
    tracker_remove (&m->tracker, old);
  region_free (old);
  j->region = fresh;
  return fresh;
}

static json_t *
string_or_null (const char *s)
{
  return s != NULL ? json_string (s) : json_null ();
}

static void
attach_now (struct mirror *m, struct control_peer *peer, json_t *id, json_t *args)
{
  struct job *j = &m->job;
  const char *start = json_string_value (json_object_get (args, "start"));
  const char *waiters = json_string_value (json_object_get (args, "waiters"));
  bool resumed;
  char *error = NULL;

  if (start == NULL)
    start = "new";
  pid_t pid = control_peer_pid (peer);
  struct process process;
  process_init (&process);
  if (process_watch (&process, pid) == -1) {
    control_error (peer, id, "GenericError", "cannot watch the worker's process %ld: %s", (long)pid,
                   strerror (errno));
    return;
  }
  struct region *r = fresh_region (m, start, &resumed, &error);
  if (r == NULL) {
    process_forget (&process);
    control_error (peer, id, "GenericError", "%s", error != NULL ? error : "no memory");
    free (error);
    return;
  }
  j->process = process; /* the one before has ended, or was forgotten */
  j->worker = peer;
  j->keep_waiters = waiters != NULL && strcmp (waiters, "keep") == 0;
  j->was_ready = false;
  free (j->reason);
  j->reason = NULL;
  if (!resumed) {
    json_object_clear (j->published);
    pace_reset_counters (&m->pace);
  }
  json_object_set_new (j->published, "state", json_string ("copying"));
  m->have_downtime = false;
  control_peer_set_worker (peer, true);
  control_reply (
      peer, id,
      json_pack ("{s:I, s:I, s:I, s:b, s:o, s:o, s:o, s:s, s:s, s:s, s:I}", "size",
                 (json_int_t)r->geo.disk_size, "block-size", (json_int_t)r->geo.block_size,
                 "session", (json_int_t)atomic_load (&r->hdr->session), "resumed", resumed, "job",
                 resumed ? json_deep_copy (j->published) : json_null (), "uri",
                 string_or_null (m->config.uri), "direct", string_or_null (m->config.direct),
                 "export", m->config.export, "nbdkit-version", NBDKIT_VERSION_STRING, "instance",
                 j->instance, "lease-ms", (json_int_t)job_default_lease_ms (j)),
      r->fd);
}

/* May this attach go on?  False if it was answered with an error. */
static bool
attach_allowed (struct mirror *m, struct control_peer *peer, json_t *id, json_t *args)
{
  struct region_geometry geo;
  struct gate_view gate;
  const char *start = json_string_value (json_object_get (args, "start"));

  gate_look (&m->gate, &gate);
  if (gate.mode == GATE_FENCED)
    control_error (peer, id, "Fenced",
                   "this disk was handed over: writes are refused until a rollback");
  else if (m->job.worker != NULL)
    control_error (peer, id, "WorkerAttached", "a worker is attached: process %ld",
                   (long)m->job.process.pid);
  else if (!tracker_geometry (&m->tracker, &geo))
    control_error (peer, id, "NoDisk",
                   "the disk's size is not known: open an NBD connection to the export first");
  else if (m->job.region != NULL && (start == NULL || strcmp (start, "new") == 0))
    control_error (peer, id, "JobExists",
                   "a job is left over: resume it, or restart from the beginning");
  else
    return true;
  return false;
}

void
job_attach (struct mirror *m, struct control_peer *peer, json_t *id, json_t *args)
{
  struct job *j = &m->job;

  if (!attach_allowed (m, peer, id, args))
    return;
  if (process_ended (&j->process))
    attach_now (m, peer, id, args);
  else if (j->attach.peer != NULL)
    control_error (peer, id, "WorkerAttached", "another worker is attaching");
  else {
    /* It hung up a moment ago and is most likely about to end. */
    j->attach.peer = peer;
    j->attach.id = json_incref (id);
    j->attach.args = json_incref (args);
    j->attach.limit_ns = gate_now () + OLD_WORKER_LIMIT_MS * NS_PER_MS;
  }
}

static void
attach_tick (struct mirror *m)
{
  struct waiting_answer w = m->job.attach;
  bool ended = process_ended (&m->job.process);

  if (w.peer == NULL || (!ended && gate_now () < w.limit_ns))
    return;
  memset (&m->job.attach, 0, sizeof m->job.attach);
  if (!ended)
    control_error (w.peer, w.id, "WorkerAttached",
                   "the last worker hung up, but its process %ld still exists",
                   (long)m->job.process.pid);
  else if (attach_allowed (m, w.peer, w.id, w.args))
    attach_now (m, w.peer, w.id, w.args);
  answer_free (&w);
}

void
job_worker_gone (struct mirror *m, const char *state, const char *reason)
{
  struct job *j = &m->job;
  struct relay *r;

  if (j->worker == NULL)
    return;
  control_peer_set_worker (j->worker, false);
  j->worker = NULL;
  j->ended = state;
  free (j->reason);
  j->reason = reason != NULL ? strdup (reason) : NULL;
  answer_free (&j->hold);
  pace_end (&m->pace); /* nobody is left to answer */
  handoff_abort (m, "DeviceNotActive", "worker lost");
  gate_release (&m->gate, 0, "worker lost");
  while ((r = j->relays) != NULL) {
    j->relays = r->next;
    control_error (r->peer, r->id, "DeviceNotActive", "the worker was lost");
    relay_free (r);
  }
}

void
job_worker_finished (struct mirror *m)
{
  process_forget (&m->job.process);
  job_drop_region (m);
}

/* ---- requests of users ---- */

void
relay_free (struct relay *r)
{
  if (r != NULL)
    json_decref (r->id);
  free (r);
}

void
job_relay (struct mirror *m, struct control_peer *peer, json_t *id, const char *execute,
           json_t *args, int64_t limit_ms)
{
  struct job *j = &m->job;
  struct relay *r = calloc (1, sizeof *r);

  if (r == NULL) {
    control_error (peer, id, "GenericError", "no memory");
    return;
  }
  r->number = ++j->last_request;
  r->peer = peer;
  r->id = json_incref (id);
  r->prepare = strcmp (execute, "prepare") == 0;
  r->limit_ns = gate_now () + limit_ms * NS_PER_MS;
  r->next = j->relays;
  j->relays = r;
  control_event (m->server, j->worker, "MIRROR_REQUEST",
                 json_pack ("{s:I, s:s, s:O}", "request", (json_int_t)r->number, "execute", execute,
                            "arguments", args));
}

static struct relay *
unlink_relay (struct relay **at)
{
  struct relay *r = *at;
  if (r != NULL)
    *at = r->next;
  return r;
}

struct relay *
job_take_relay (struct job *j, uint64_t number)
{
  struct relay **at = &j->relays;
  while (*at != NULL && (*at)->number != number)
    at = &(*at)->next;
  return unlink_relay (at);
}

struct relay *
job_take_prepare (struct job *j)
{
  struct relay **at = &j->relays;
  while (*at != NULL && !(*at)->prepare)
    at = &(*at)->next;
  return unlink_relay (at);
}

static void
relay_tick (struct mirror *m)
{
  int64_t now = gate_now ();
  struct relay **at = &m->job.relays;

  while (*at != NULL) {
    if (now < (*at)->limit_ns) {
      at = &(*at)->next;
      continue;
    }
    struct relay *r = unlink_relay (at);
    control_error (r->peer, r->id, "GenericError", "the worker did not answer in time");
    if (r->prepare) {
      handoff_abort (m, "GenericError", "worker does not answer");
      at = &m->job.relays; /* the list may have changed */
    }
    relay_free (r);
  }
}

static void
hold_tick (struct mirror *m)
{
  struct waiting_answer *w = &m->job.hold;

  if (w->peer == NULL)
    return;
  switch (gate_drained (&m->gate, w->generation)) {
  case 0:
    control_reply (w->peer, w->id, json_pack ("{s:I}", "generation", (json_int_t)w->generation),
                   -1);
    break;
  case EAGAIN:
    return;
  default:
    control_error (w->peer, w->id, "LeaseEnded",
                   "the hold ended before the requests below were drained");
  }
  answer_free (w);
}

void
job_peer_closed (struct mirror *m, struct control_peer *peer)
{
  struct job *j = &m->job;
  struct relay **at = &j->relays;

  if (peer == j->worker)
    job_worker_gone (m, "detached", "the worker's connection closed");
  if (peer == j->hold.peer)
    answer_free (&j->hold);
  if (peer == j->attach.peer)
    answer_free (&j->attach);
  while (*at != NULL)
    if ((*at)->peer == peer)
      relay_free (unlink_relay (at));
    else
      at = &(*at)->next;
}

void
job_tick (struct mirror *m)
{
  struct job *j = &m->job;

  if (j->worker != NULL && process_ended (&j->process)) {
    struct control_peer *peer = j->worker;
    job_worker_gone (m, "detached", "the worker's process ended");
    control_peer_close (peer);
  }
  hold_tick (m);
  relay_tick (m);
  attach_tick (m);
  shrink_ghost (j);
}
