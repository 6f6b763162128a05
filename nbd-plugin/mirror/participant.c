/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * This disk's part in a hand-off, from the request to "prepared".  How it ends is in
 * participant-end.c.  See participant.h.
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <nbdkit-filter.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "dirty-bitmap/claims.h"
#include "nbd-plugin/mirror/attachment.h"
#include "nbd-plugin/mirror/filter.h"
#include "nbd-plugin/mirror/participant-internal.h"
#include "nbd-plugin/mirror/participant.h"
#include "nbd-plugin/mirror/status.h"

void
participant_begin (struct mirror *m, struct control_peer *peer, json_t *id, json_t *args, int fd)
{
  struct participant *p = &m->participant;
  struct gate_view gate;
  const char *token = json_string_value (json_object_get (args, "rollback-token"));
  const char *waiters = json_string_value (json_object_get (args, "waiters"));
  const char *successor = json_string_value (json_object_get (args, "successor"));
  json_t *lease = json_object_get (args, "lease-ms");
  char *error = NULL;
  struct decision *word = NULL;

  gate_look (&m->gate, &gate);
  if (!rollback_token_valid (token))
    control_error (peer, id, "GenericError",
                   "rollback-token has 1 to %d characters of [A-Za-z0-9._-]", ROLLBACK_TOKEN_MAX);
  else if (fd == -1)
    control_error (peer, id, "GenericError", "no descriptor of a decision word was passed");
  else if (gate.mode == GATE_FENCED)
    control_error (peer, id, "Fenced", "this disk was handed over already");
  else if (m->attachment.worker == NULL)
    control_error (peer, id, "DeviceNotActive", "no worker is attached");
  else if (m->attachment.region == NULL) /* released, and its worker has not left yet */
    control_error (peer, id, "DeviceNotActive", "the job has ended");
  else if (p->active || gate.mode == GATE_HELD)
    control_error (peer, id, "Busy", "another hand-over is under way");
  else if ((word = decision_map (fd, &error)) == NULL)
    control_error (peer, id, "GenericError", "%s", error);
  else if (decision_get (word) != DECISION_UNDECIDED) {
    control_error (peer, id, "GenericError", "the decision word is decided already");
    decision_free (word);
  } else {
    participant_finish (p);
    participant_note_reason (p, NULL);
    p->active = true;
    p->coordinator = peer;
    p->decision = word;
    snprintf (p->token, sizeof p->token, "%s", token);
    snprintf (p->successor, sizeof p->successor, "%s", successor != NULL ? successor : "");
    p->keep_waiters = waiters != NULL ? strcmp (waiters, "keep") == 0 : m->attachment.keep_waiters;
    p->releases = json_is_true (json_object_get (args, "release"));
    p->arm = json_is_true (json_object_get (args, "arm"));
    p->lease_ms
        = lease != NULL ? json_integer_value (lease) : attachment_default_lease_ms (&m->attachment);
    json_t *relayed
        = json_pack ("{s:s, s:I, s:s, s:s}", "id", DEFAULT_ID, "lease-ms", (json_int_t)p->lease_ms,
                     "rollback-token", token, "waiters", p->keep_waiters ? "keep" : "error");
    if (json_is_true (json_object_get (args, "guest-stopped")))
      json_object_set_new (relayed, "guest-stopped", json_true ());
    if (p->arm)
      json_object_set_new (relayed, "arm", json_true ());
    attachment_ask (m, peer, id, "prepare", relayed, PREPARE_LIMIT_MS + p->lease_ms);
    json_decref (relayed);
  }
  text_free (error);
  fd_close (&fd);
}

int
participant_draft (struct mirror *m, char **error)
{
  struct participant *p = &m->participant;
  struct fence_record record = { 0 };
  struct region_geometry geo;
  struct gate_view gate;

  if (p->releases)
    return 0;
  gate_look (&m->gate, &gate);
  record.generation = gate.next_generation; /* only this thread holds the gate */
  if (tracker_geometry (&m->tracker, &geo))
    record.disk_size = geo.disk_size;
  snprintf (record.token, sizeof record.token, "%s", p->token);
  snprintf (record.successor, sizeof record.successor, "%s", p->successor);
  if (fence_draft (&m->fence, &record, error) == 0)
    return 0;
  nbdkit_error ("mirror: %s", *error);
  return -1;
}

void
participant_unhold (struct mirror *m)
{
  m->participant.generation = 0;
  participant_drop_draft (m);
}

/* The final look (R3), in its order.  NULL if the disk is done, else the error's class. */
static const char *
final_look (struct mirror *m, uint64_t generation, uint64_t session)
{
  struct participant *p = &m->participant;
  struct region *r = m->attachment.region;

  if (p->generation == 0 || generation != p->generation)
    return "StaleGeneration";
  int drained = gate_drained (&m->gate, generation);
  if (drained != 0)
    return drained == EAGAIN ? "NotEmpty" : "StaleGeneration";
  if (!claims_all_empty (r))
    return "NotEmpty";
  if (atomic_load (&r->hdr->session) != session)
    return "StaleSession";
  return gate_drained (&m->gate, generation) == 0 ? NULL : "StaleGeneration";
}

/* The draft was made durable before this hold began (participant_draft).  Once the disk is prepared
 * the next server must know that it may have been committed. */
static int
mark_draft (struct mirror *m, char **error)
{
  if (m->participant.releases)
    return 0;
  if (m->fence.state != FENCE_DRAFT || m->fence.record.generation != m->participant.generation)
    return text_error (error, "the fence record of this hand-over is not there");
  if (fence_mark_prepared (&m->fence, error) == 0)
    return 0;
  nbdkit_error ("mirror: %s", *error);
  return -1;
}

/* From now on the word decides. */
static int
hold_for_word (struct mirror *m)
{
  struct participant *p = &m->participant;

  if (p->releases)
    return gate_prepare_release (&m->gate, p->generation, p->decision);
  return gate_prepare (&m->gate, p->generation, p->decision, p->keep_waiters);
}

/* The disk is prepared: whoever waits for that is told. */
static void
answer_now (struct mirror *m)
{
  struct participant *p = &m->participant;

  if (p->now_owed)
    control_reply (p->coordinator, p->now_id,
                   json_pack ("{s:I}", "generation", (json_int_t)p->generation), -1);
  p->now_owed = false;
}

const char *
participant_look_message (const char *class_)
{
  if (strcmp (class_, "NotEmpty") == 0)
    return "blocks are left to copy, or requests in flight";
  if (strcmp (class_, "StaleSession") == 0)
    return "the session has changed";
  return "that hold is over, or is not this hand-over's";
}

void
participant_prepared (struct mirror *m, struct control_peer *peer, json_t *id, uint64_t generation,
                      uint64_t session)
{
  struct participant *p = &m->participant;

  if (!p->active || m->attachment.region == NULL) {
    control_error (peer, id, "StaleGeneration", "no hand-over is under way");
    return;
  }
  if (p->prepared && p->generation == generation) {
    control_reply (peer, id, NULL, -1);
    return;
  }
  const char *class_ = final_look (m, generation, session);
  if (class_ != NULL) {
    control_error (peer, id, class_, "%s", participant_look_message (class_));
    return;
  }
  CLEANUP_TEXT char *error = NULL;
  if (mark_draft (m, &error) == -1) {
    control_error (peer, id, "GenericError", "%s", error);
    return;
  }
  if (hold_for_word (m) != 0) {
    control_error (peer, id, "StaleGeneration", "%s", participant_look_message ("StaleGeneration"));
    return;
  }
  p->prepared = true;
  control_reply (peer, id, NULL, -1);
  answer_now (m);
}

/* ---- in two steps --------------------------------------------------------------------------- */

/* The worker has done all that can be done before the hold. */
static void
be_armed (struct mirror *m, struct relay *relay)
{
  struct participant *p = &m->participant;
  CLEANUP_TEXT char *error = NULL;

  if (participant_draft (m, &error) == -1) {
    control_error (relay->peer, relay->id, "GenericError", "%s", error);
    participant_abort (m, "GenericError", "no fence record");
    return;
  }
  p->armed_ns = (int64_t)clock_ns ();
  control_reply (relay->peer, relay->id, json_pack ("{s:b}", "armed", 1), -1);
}

/* The gate is held for mirror-prepare-now.  Is the disk done, or has the worker to copy the rest?
 * The gate wakes us when it is drained. */
static void
look_now (struct mirror *m)
{
  struct participant *p = &m->participant;
  CLEANUP_TEXT char *error = NULL;

  if (!p->now_owed || p->told_worker || gate_drained (&m->gate, p->generation) != 0)
    return;
  uint64_t session = atomic_load (&m->attachment.region->hdr->session);
  if (final_look (m, p->generation, session) != NULL) {
    p->told_worker = true;
    control_event (m->server, m->attachment.worker, "MIRROR_HELD",
                   json_pack ("{s:I}", "generation", (json_int_t)p->generation));
  } else if (mark_draft (m, &error) == -1)
    participant_abort (m, "GenericError", "no fence record");
  else if (hold_for_word (m) == 0) {
    p->prepared = true;
    answer_now (m);
  }
}

void
participant_prepare_now (struct mirror *m, struct control_peer *peer, json_t *id)
{
  struct participant *p = &m->participant;

  if (!p->active && p->given_up != NULL) {
    control_error (peer, id, "GenericError", "the hand-over was given up: %s", p->given_up);
    return;
  }
  if (!p->active || p->coordinator != peer || p->armed_ns == 0 || p->generation != 0) {
    control_error (peer, id, "GenericError", "no hand-over of this connection's is armed");
    return;
  }
  if (gate_hold (&m->gate, p->lease_ms * NS_PER_MS, &p->generation) != 0) {
    control_error (peer, id, "GenericError", "the gate cannot be held now");
    participant_abort (m, "GenericError", "not held");
    return;
  }
  p->now_owed = true;
  p->now_id = json_incref (id);
  look_now (m);
}

bool
participant_worker_gives_up (struct mirror *m, const char *class_, const char *reason)
{
  struct participant *p = &m->participant;

  if (p->now_owed)
    control_error (p->coordinator, p->now_id, class_, "%s", reason);
  p->now_owed = false;
  if (participant_abort (m, "GenericError", "released by the worker"))
    return false;
  participant_note_reason (p, reason);
  return true;
}

/* ---- answers -------------------------------------------------------------------------------- */

void
participant_worker_answer (struct mirror *m, struct relay *relay, json_t *ret, json_t *error)
{
  struct participant *p = &m->participant;

  (void)ret; /* the generation is ours to tell */
  if (error != NULL) {
    const char *class_ = json_string_value (json_object_get (error, "class"));
    const char *desc = json_string_value (json_object_get (error, "desc"));
    control_error (relay->peer, relay->id, class_ != NULL ? class_ : "GenericError", "%s",
                   desc != NULL ? desc : "the worker refused");
    participant_abort (m, "GenericError", "worker refused");
  } else if (p->active && p->prepared)
    control_reply (relay->peer, relay->id,
                   json_pack ("{s:I}", "generation", (json_int_t)p->generation), -1);
  else if (p->active && p->arm && p->armed_ns == 0)
    be_armed (m, relay);
  else {
    control_error (relay->peer, relay->id, "GenericError",
                   "the worker answered before the disk was prepared");
    participant_abort (m, "GenericError", "not prepared");
  }
  relay_free (relay);
}

void
participant_peer_closed (struct mirror *m, struct control_peer *peer)
{
  struct participant *p = &m->participant;

  if (!p->active || p->coordinator != peer)
    return;
  p->now_owed = false;
  p->coordinator = NULL; /* a commit that cannot be recorded yet outlives it */
  if (!p->kept)
    participant_abort (m, "GenericError", "coordinator lost");
}

void
participant_worker_gone (struct mirror *m, const char *state, const char *reason)
{
  if (!attachment_lost (m, state, reason))
    return;
  participant_abort (m, "DeviceNotActive", "worker lost");
  gate_release (&m->gate, 0, "worker lost");
  relay_fail_all (&m->attachment.relays);
}

void
participant_tick (struct mirror *m)
{
  struct participant *p = &m->participant;
  struct gate_view gate;

  gate_look (&m->gate, &gate);
  if (!p->active) {
    if (m->fence.state == FENCE_DRAFT && gate.mode != GATE_FENCED
        && (int64_t)clock_ns () >= p->retry_ns)
      participant_drop_draft (m);
    return;
  }
  look_now (m);
  gate_look (&m->gate, &gate);
  bool held = gate.mode == GATE_HELD && gate.generation == p->generation;
  bool release = p->releases && held && decision_get (p->decision) == DECISION_COMMIT;
  if (p->prepared && (gate.mode == GATE_FENCED || release))
    participant_commit (m);
  else if (p->generation != 0 && !held) {
    bool late = gate.reason != NULL && strcmp (gate.reason, "lease ended") == 0;
    participant_abort (m, late ? "LeaseEnded" : "GenericError",
                       gate.reason != NULL ? gate.reason : "released");
  } else if (!p->prepared && decision_get (p->decision) != DECISION_UNDECIDED)
    participant_abort (m, "GenericError", "aborted");
  else if (p->armed_ns != 0 && p->generation == 0
           && (int64_t)clock_ns () - p->armed_ns > PREPARE_LIMIT_MS * NS_PER_MS)
    participant_abort (m, "GenericError", "the coordinator does not go on");
}

void
participant_shutdown (struct mirror *m)
{
  m->participant.retry_ns = 0; /* the last try to record a commit */
  participant_abort (m, "GenericError", "the server stops");
  participant_finish (&m->participant);
  participant_note_reason (&m->participant, NULL);
}
