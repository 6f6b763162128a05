/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Attaching and losing a worker, and the regions that its job leaves behind.  See attachment.h.
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <nbdkit-filter.h>

#include "base/clock.h"
#include "base/text.h"
#include "control/wire.h"
#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/claims.h"
#include "nbd-plugin/mirror/attachment.h"
#include "nbd-plugin/mirror/filter.h"
#include "nbd-plugin/mirror/receiving.h"

void
attachment_init (struct attachment *a)
{
  memset (a, 0, sizeof *a);
  process_init (&a->process);
  uint8_t uuid[16];
  uuid_make (uuid);
  uuid_text (uuid, a->instance);
  a->ended = "idle";
  a->published = json_object ();
}

static void
answer_free (struct waiting_answer *w)
{
  json_decref (w->id);
  json_decref (w->args);
  memset (w, 0, sizeof *w);
}

void
attachment_free (struct mirror *m)
{
  struct attachment *a = &m->attachment;

  relay_free_all (&a->relays);
  answer_free (&a->hold);
  answer_free (&a->attach);
  pace_end (&m->pace);
  if (a->region != NULL)
    tracker_remove (&m->tracker, a->region);
  region_free (a->region);
  region_free (a->ghost);
  process_forget (&a->process);
  json_decref (a->published);
  text_free (a->reason);
  memset (a, 0, sizeof *a);
  process_init (&a->process);
}

/* ---- the ghost: what requests of a dropped job may still hit (R12) ---- */

static bool
holds_claims (const struct region *r)
{
  return !bitmap_empty (r, REGION_CLAIMED_A) || !bitmap_empty (r, REGION_CLAIMED_B)
         || !bitmap_empty (r, REGION_QUARANTINE);
}

/* Once the process has ended only its unfinished blocks matter: keep those alone, in a region whose
 * other pages were never touched. */
static void
shrink_ghost (struct attachment *a)
{
  struct region *old = a->ghost, *small = NULL;

  if (old == NULL || !process_ended (&a->process))
    return;
  if (holds_claims (old)) {
    if (bitmap_empty (old, REGION_DIRTY))
      return; /* small already */
    small = region_create (&old->geo, old->tracker_uuid, NULL);
    if (small == NULL)
      return;
    claims_quarantine_from (small, old);
  }
  a->ghost = small;
  region_free (old);
}

void
attachment_drop_region (struct mirror *m)
{
  struct attachment *a = &m->attachment;
  struct region *old = a->region;

  if (old == NULL)
    return;
  persist_region (m, NULL);
  pace_end (&m->pace); /* waiters sleep on words of the region */
  tracker_remove (&m->tracker, old);
  a->region = NULL;
  if (a->ghost != NULL) {
    claims_quarantine_from (old, a->ghost);
    region_free (a->ghost);
  }
  a->ghost = old;
  shrink_ghost (a);
}

/* ---- attach ---- */

int64_t
attachment_default_lease_ms (const struct attachment *a)
{
  double ms = json_number_value (json_object_get (a->published, "max-downtime-ms"));

  if (ms <= 0)
    ms = DEFAULT_MAX_DOWNTIME_MS;
  ms *= 2;
  return ms >= (double)MAX_LEASE_MS ? MAX_LEASE_MS : ms < 1 ? 1 : (int64_t)ms;
}

/* A fresh region in the tracker's table, holding what START says, and in a job that begins only
 * what was changed since the checkpoint SINCE, if that is not NULL.  The old one is gone then. */
static struct region *
fresh_region (struct mirror *m, const char *start, const char *since, bool *resumed, char **error)
{
  struct attachment *a = &m->attachment;
  struct region *old = a->region;
  struct region_geometry geo;
  uint8_t uuid[16];

  tracker_geometry (&m->tracker, &geo);
  uuid_make (uuid);
  struct region *fresh = region_create (&geo, uuid, error);
  if (fresh == NULL)
    return NULL;
  if (tracker_add (&m->tracker, fresh) == -1) {
    region_free (fresh);
    text_error (error, "too many regions");
    return NULL;
  }
  *resumed = old != NULL && strcmp (start, "resume") == 0;
  if (!*resumed
      && ((since != NULL && persist_fill (m, since, fresh, error) == -1)
          || persist_begin (m, &geo, since, error) == -1)) {
    tracker_remove (&m->tracker, fresh);
    region_free (fresh);
    return NULL;
  }
  if (*resumed)
    region_merge (fresh, old);
  else {
    if (since == NULL)
      bitmap_set (fresh, REGION_DIRTY, 0, geo.nr_blocks);
    atomic_store (&fresh->hdr->session, 1);
    if (old != NULL)
      claims_quarantine_from (fresh,
                              old); /* its last requests may come late at the same destination */
  }
  if (a->ghost != NULL)
    claims_quarantine_from (fresh, a->ghost);
  /* Only what is copied leaves quarantine. */
  bitmap_or (fresh, REGION_DIRTY, fresh, REGION_QUARANTINE);
  persist_region (m, fresh);
  pace_end (&m->pace);
  region_free (a->ghost);
  a->ghost = NULL;
  if (old != NULL)
    tracker_remove (&m->tracker, old);
  region_free (old);
  a->region = fresh;
  return fresh;
}

static void
attach_now (struct mirror *m, struct control_peer *peer, json_t *id, json_t *args)
{
  struct attachment *a = &m->attachment;
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
  const char *since = json_string_value (json_object_get (args, "since"));
  struct region *r = fresh_region (m, start, since, &resumed, &error);
  if (r == NULL) {
    process_forget (&process);
    control_error (peer, id, since != NULL ? "NoCheckpoint" : "GenericError", "%s", error);
    text_free (error);
    return;
  }
  a->process = process; /* the one before has ended, or was forgotten */
  a->worker = peer;
  a->keep_waiters = waiters != NULL && strcmp (waiters, "keep") == 0;
  a->was_ready = false;
  text_free (a->reason);
  a->reason = NULL;
  if (!resumed) {
    json_object_clear (a->published);
    pace_reset_counters (&m->pace);
  }
  json_object_del (a->published, "return-checkpoint"); /* the last worker's session has told it */
  json_object_set_new (a->published, "state", json_string ("copying"));
  m->have_downtime = false;
  control_peer_set_worker (peer, true);
  control_reply (
      peer, id,
      json_pack ("{s:I, s:I, s:I, s:b, s:b, s:o, s:o, s:o, s:s, s:s, s:s, s:I}", "size",
                 (json_int_t)r->geo.disk_size, "block-size", (json_int_t)r->geo.block_size,
                 "session", (json_int_t)atomic_load (&r->hdr->session), "resumed", resumed,
                 "persistent", m->persist.path != NULL, "job",
                 resumed ? json_deep_copy (a->published) : json_null (), "uri",
                 wire_text_or_null (m->config.uri), "direct", wire_text_or_null (m->config.direct),
                 "export", m->config.export, "nbdkit-version", NBDKIT_VERSION_STRING, "instance",
                 a->instance, "lease-ms", (json_int_t)attachment_default_lease_ms (a)),
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
  else if (receiving_is (m))
    control_error (peer, id, "Receiving", "%s", RECEIVING_REFUSAL);
  else if (m->bypass.on)
    control_error (peer, id, "Bypassed", BYPASSED, m->bypass.path);
  else if (m->attachment.worker != NULL)
    control_error (peer, id, "WorkerAttached", "a worker is attached: process %ld",
                   (long)m->attachment.process.pid);
  else if (!tracker_geometry (&m->tracker, &geo))
    control_error (peer, id, "NoDisk",
                   "the disk's size is not known: open an NBD connection to the export first");
  else if (m->attachment.region != NULL && (start == NULL || strcmp (start, "new") == 0))
    control_error (peer, id, "JobExists",
                   "a job is left over: resume it, or restart from the beginning");
  else if (m->attachment.region == NULL && start != NULL && strcmp (start, "resume") == 0)
    control_error (peer, id, "NothingToResume", "no job is left over that could be resumed");
  else
    return true;
  return false;
}

void
attachment_attach (struct mirror *m, struct control_peer *peer, json_t *id, json_t *args)
{
  struct attachment *a = &m->attachment;

  checkpoints_settle (m);
  persist_tick (m); /* a job of a disk of another size is dropped */
  if (!attach_allowed (m, peer, id, args))
    return;
  if (process_ended (&a->process))
    attach_now (m, peer, id, args);
  else if (a->attach.peer != NULL)
    control_error (peer, id, "WorkerAttached", "another worker is attaching");
  else {
    /* It hung up a moment ago and is most likely about to end. */
    a->attach.peer = peer;
    a->attach.id = json_incref (id);
    a->attach.args = json_incref (args);
    a->attach.limit_ns = (int64_t)clock_ns () + OLD_WORKER_LIMIT_MS * NS_PER_MS;
  }
}

static void
attach_tick (struct mirror *m)
{
  struct waiting_answer w = m->attachment.attach;
  bool ended = process_ended (&m->attachment.process);

  if (w.peer == NULL || (!ended && (int64_t)clock_ns () < w.limit_ns))
    return;
  memset (&m->attachment.attach, 0, sizeof m->attachment.attach);
  if (!ended)
    control_error (w.peer, w.id, "WorkerAttached",
                   "the last worker hung up, but its process %ld still exists",
                   (long)m->attachment.process.pid);
  else if (attach_allowed (m, w.peer, w.id, w.args))
    attach_now (m, w.peer, w.id, w.args);
  answer_free (&w);
}

struct control_peer *
attachment_dead_worker (struct attachment *a)
{
  return a->worker != NULL && process_ended (&a->process) ? a->worker : NULL;
}

bool
attachment_lost (struct mirror *m, const char *state, const char *reason)
{
  struct attachment *a = &m->attachment;

  if (a->worker == NULL)
    return false;
  control_peer_set_worker (a->worker, false);
  a->worker = NULL;
  a->ended = state;
  text_free (a->reason);
  a->reason = reason != NULL ? text_copy (reason) : NULL;
  answer_free (&a->hold);
  pace_end (&m->pace); /* nobody is left to answer */
  return true;
}

void
attachment_finished (struct mirror *m)
{
  process_forget (&m->attachment.process);
  attachment_drop_region (m);
}

void
attachment_ask (struct mirror *m, struct control_peer *peer, json_t *id, const char *execute,
                json_t *args, int64_t limit_ms)
{
  relay_ask (&m->attachment.relays, &(struct relay_request){ .server = m->server,
                                                             .worker = m->attachment.worker,
                                                             .peer = peer,
                                                             .id = id,
                                                             .execute = execute,
                                                             .args = args,
                                                             .limit_ms = limit_ms });
}

/* ---- answers that wait ---- */

static void
hold_tick (struct mirror *m)
{
  struct waiting_answer *w = &m->attachment.hold;

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
attachment_peer_closed (struct attachment *a, struct control_peer *peer)
{
  if (peer == a->hold.peer)
    answer_free (&a->hold);
  if (peer == a->attach.peer)
    answer_free (&a->attach);
  relay_peer_closed (&a->relays, peer);
}

void
attachment_tick (struct mirror *m)
{
  struct attachment *a = &m->attachment;

  if (a->region != NULL && a->worker == NULL && process_ended (&a->process))
    bitmap_end_clears (a->region);
  hold_tick (m);
  attach_tick (m);
  shrink_ghost (&m->attachment);
}
