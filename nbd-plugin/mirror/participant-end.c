/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * How this disk's part in a hand-off ends: commit, abort, release, rollback, and what is told of
 * it. See participant.h.
 */

#include "config.h"

#include <errno.h>
#include <string.h>

#include <nbdkit-filter.h>

#include "base/clock.h"
#include "base/text.h"
#include "nbd-plugin/mirror/attachment.h"
#include "nbd-plugin/mirror/filter.h"
#include "nbd-plugin/mirror/participant-internal.h"
#include "nbd-plugin/mirror/participant.h"
#include "nbd-plugin/mirror/status.h"

#define RETRY_NS (1000 * NS_PER_MS)

void
participant_finish (struct participant *p)
{
  char *given_up = p->given_up;

  decision_free (p->decision);
  json_decref (p->now_id);
  text_free (p->record_error);
  memset (p, 0, sizeof *p);
  p->given_up = given_up;
}

void
participant_note_reason (struct participant *p, const char *reason)
{
  text_free (p->given_up);
  p->given_up = reason != NULL ? text_copy (reason) : NULL;
}

void
participant_refuse (struct mirror *m, const char *class_, const char *reason)
{
  struct relay *r = relay_take_prepare (&m->attachment.relays);

  if (r != NULL)
    control_error (r->peer, r->id, class_, "the hand-over was given up: %s", reason);
  relay_free (r);
  struct participant *p = &m->participant;
  if (p->now_owed)
    control_error (p->coordinator, p->now_id, class_, "the hand-over was given up: %s", reason);
  p->now_owed = false;
  participant_note_reason (p, reason);
}

void
participant_drop_draft (struct mirror *m)
{
  char *error = NULL;

  if (fence_remove (&m->fence, &error) == 0)
    return;
  nbdkit_error ("mirror: %s", error);
  text_free (error);
  m->participant.retry_ns = (int64_t)clock_ns () + RETRY_NS;
}

/* The word says "commit" of a hold that is to be released.  The state file is written after the
 * guest goes on: until then it takes the job for one that is left over, which does no harm. */
static bool
let_go (struct mirror *m)
{
  struct participant *p = &m->participant;
  uint64_t generation = p->generation;
  struct gate_view gate;

  gate_look (&m->gate, &gate);
  double ms = (double)((int64_t)clock_ns () - gate.held_ns) / NS_PER_MS;
  if (gate.mode != GATE_HELD || gate.generation != generation) {
    participant_refuse (m, "LeaseEnded", "the lease ended");
    participant_finish (p);
    return false;
  }
  if (m->attachment.region != NULL) {
    persist_keep (m);
    tracker_remove (&m->tracker, m->attachment.region);
  }
  bool good = gate_release_committed (&m->gate, generation) == 0;
  m->downtime_ms = ms;
  m->have_downtime = good;
  if (good)
    m->released = generation;
  participant_refuse (m, "GenericError", "it is over");
  control_event (m->server, NULL, "BLOCK_JOB_COMPLETED", mirror_block_job_event (m));
  if (good && m->attachment.worker != NULL)
    control_event (m->server, m->attachment.worker, "MIRROR_COMMITTED",
                   json_pack ("{s:I, s:f, s:b}", "generation", (json_int_t)generation,
                              "downtime-ms", ms, "released", 1));
  attachment_drop_region (m);
  participant_finish (p);
  return good;
}

/* The commit is durable: the job is over.  CHECKPOINT: where the disk stands, or NULL. */
static void
ended_by_commit (struct mirror *m, const json_t *checkpoint)
{
  if (m->attachment.region != NULL)
    control_event (m->server, NULL, "BLOCK_JOB_COMPLETED", mirror_block_job_event (m));
  if (m->attachment.worker != NULL)
    control_event (m->server, m->attachment.worker, "MIRROR_COMMITTED",
                   json_pack ("{s:I, s:f, s:s}", "generation",
                              (json_int_t)m->fence.record.generation, "downtime-ms", m->downtime_ms,
                              "rollback-token", m->fence.record.token));
  if (fence_in_memory (&m->fence))
    nbdkit_error ("mirror: this disk is handed over, but %s is in memory: after the host's next"
                  " boot nothing refuses writes to it",
                  m->fence.path);
  handed_over_record (m, json_string_value (checkpoint));
  attachment_drop_region (m);
}

bool
participant_commit (struct mirror *m)
{
  struct participant *p = &m->participant;
  struct gate_view gate;
  char *error = NULL;

  if (p->releases)
    return let_go (m);
  if (!p->committed) {
    gate_look (&m->gate, &gate);
    m->downtime_ms = (double)((int64_t)clock_ns () - gate.held_ns) / NS_PER_MS;
    m->have_downtime = true;
    p->committed = true;
  }
  if ((int64_t)clock_ns () < p->retry_ns)
    return false;
  if (fence_commit (&m->fence, &error) == -1) {
    nbdkit_error (
        "mirror: this disk is handed over, but that cannot be recorded: %s: DO NOT restart"
        " this server with a guest",
        error);
    text_free (p->record_error);
    p->record_error = error;
    p->retry_ns = (int64_t)clock_ns () + RETRY_NS;
    return false;
  }
  struct relay *r = relay_take_prepare (&m->attachment.relays);
  if (r != NULL)
    control_reply (r->peer, r->id, json_pack ("{s:I}", "generation", (json_int_t)p->generation),
                   -1);
  relay_free (r);
  ended_by_commit (m, json_object_get (m->attachment.published, "return-checkpoint"));
  participant_finish (p);
  return true;
}

/* What the word, or the fence record, says. */
static const char *
decision_name (struct mirror *m)
{
  struct participant *p = &m->participant;

  if (!p->active)
    return m->fence.state == FENCE_COMMITTED ? "commit" : "in-doubt";
  switch (decision_get (p->decision)) {
  case DECISION_UNDECIDED:
    return "undecided";
  case DECISION_COMMIT:
    return "commit";
  default:
    return "abort";
  }
}

void
participant_decision (struct mirror *m, struct control_peer *peer, json_t *id, bool keep)
{
  struct participant *p = &m->participant;
  struct gate_view gate;

  gate_look (&m->gate, &gate);
  bool fenced = !p->active && m->fence.state != FENCE_NONE && gate.mode == GATE_FENCED;
  if (!fenced && !(p->active && p->prepared)) {
    control_error (peer, id, "DeviceNotActive", "no hand-over of this disk is prepared");
    return;
  }
  if (keep && (fenced || p->coordinator != peer)) {
    control_error (peer, id, "GenericError",
                   "only the coordinator of a prepared hand-over can keep it");
    return;
  }
  p->kept |= keep;
  int64_t left = gate.lease_end_ns - (int64_t)clock_ns ();
  control_reply (
      peer, id,
      json_pack ("{s:s, s:I, s:s, s:o}", "decision", decision_name (m), "generation",
                 (json_int_t)(fenced ? m->fence.record.generation : p->generation),
                 "rollback-token", fenced ? m->fence.record.token : p->token, "lease-left-ms",
                 fenced ? json_null () : json_real ((double)(left > 0 ? left : 0) / 1e6)),
      fenced ? -1 : p->decision->fd);
}

static void
reply_committed (struct mirror *m, struct control_peer *peer, json_t *id)
{
  control_reply (peer, id,
                 json_pack ("{s:o, s:s}", "downtime-ms",
                            m->have_downtime ? json_real (m->downtime_ms) : json_null (),
                            "rollback-token", m->fence.record.token),
                 -1);
}

static void
reply_released (struct mirror *m, struct control_peer *peer, json_t *id)
{
  control_reply (peer, id, json_pack ("{s:f}", "downtime-ms", m->downtime_ms), -1);
}

void
participant_finalize (struct mirror *m, struct control_peer *peer, json_t *id, uint64_t generation)
{
  struct participant *p = &m->participant;
  bool in_doubt = m->fence.state == FENCE_DRAFT;
  char *error = NULL;

  if (p->active) {
    if (!p->prepared || generation != p->generation)
      control_error (peer, id, "StaleGeneration", "%s",
                     participant_look_message ("StaleGeneration"));
    else if (decision_get (p->decision) != DECISION_COMMIT)
      control_error (peer, id, "NotDecided", "the decision word does not say commit");
    else if (p->releases) {
      if (participant_commit (m))
        reply_released (m, peer, id);
      else
        control_error (peer, id, "LeaseEnded",
                       "the guest was let go by the end of the lease, before the job had ended");
    } else {
      gate_settle (&m->gate);
      p->retry_ns = 0;
      if (participant_commit (m))
        reply_committed (m, peer, id);
      else
        control_error (peer, id, "GenericError", "handed over, but not recorded: %s",
                       p->record_error);
    }
  } else if (generation != 0 && generation == m->released)
    reply_released (m, peer, id);
  else if (m->fence.state == FENCE_NONE || m->fence.record.generation != generation)
    control_error (peer, id, "StaleGeneration", "no hand-over of generation %llu is known",
                   (unsigned long long)generation);
  else if (fence_commit (&m->fence, &error) == -1) {
    control_error (peer, id, "GenericError", "%s", error);
    text_free (error);
  } else {
    /* Now we know.  But the host may have lost writes that the destination has: this disk stands at
     * no checkpoint, whatever the job's note says. */
    if (in_doubt)
      ended_by_commit (m, NULL);
    reply_committed (m, peer, id);
  }
}

void
participant_release (struct mirror *m, struct control_peer *peer, json_t *id, uint64_t generation)
{
  struct participant *p = &m->participant;
  CLEANUP_TEXT char *error = NULL;
  struct gate_view gate;

  gate_look (&m->gate, &gate);
  if (m->fence.state == FENCE_DRAFT && gate.mode == GATE_FENCED && !p->active) {
    /* In doubt since a restart: the one who decides says that it was not committed. */
    if (generation != m->fence.record.generation)
      control_error (peer, id, "StaleGeneration", "the hand-over in doubt has generation %llu",
                     (unsigned long long)m->fence.record.generation);
    else if (fence_remove (&m->fence, &error) == -1)
      control_error (peer, id, "GenericError", "%s", error);
    else {
      gate_unfence (&m->gate);
      control_reply (peer, id, NULL, -1);
    }
    return;
  }
  if (generation != 0 && generation != gate.generation) {
    control_error (peer, id, "StaleGeneration", "%s", participant_look_message ("StaleGeneration"));
    return;
  }
  if (generation != 0 && gate.mode == GATE_OPEN) { /* over; the next is not his to end */
    control_reply (peer, id, NULL, -1);
    return;
  }
  if (generation == 0 && p->active && p->coordinator != peer) {
    /* A coordinator that was refused with Busy tidies up: that must not hit the one that is at
     * work. */
    control_error (peer, id, "Busy",
                   "that is another coordinator's hand-over: name its generation");
    return;
  }
  if (participant_abort (m, "GenericError", "released")
      || gate_release (&m->gate, 0, "released") == EALREADY)
    control_error (peer, id, "AlreadyCommitted", "the hand-over is committed already");
  else
    control_reply (peer, id, NULL, -1);
}

void
participant_rollback (struct mirror *m, struct control_peer *peer, json_t *id, const char *token)
{
  struct gate_view gate;
  char *error = NULL;

  gate_look (&m->gate, &gate);
  if (gate.mode != GATE_FENCED)
    control_error (peer, id, "NotFenced", "this disk is not fenced");
  else if (m->fence.record.token[0] == '\0')
    control_error (peer, id, "GenericError",
                   "the fence record %s cannot be read, so no token can be compared: remove it by"
                   " hand and restart the server",
                   m->fence.path);
  else if (strcmp (token, m->fence.record.token) != 0)
    control_error (peer, id, "WrongToken", "that is not this hand-over's rollback token");
  else if (handed_over_take_back (m, &error) == -1 || fence_remove (&m->fence, &error) == -1)
    control_error (peer, id, "GenericError", "%s", error);
  else {
    participant_finish (&m->participant);
    m->have_downtime = false;
    if (m->attachment.worker != NULL) { /* its job ended with the commit */
      control_peer_close (m->attachment.worker);
      participant_worker_gone (m, "idle", NULL);
    }
    attachment_drop_region (m); /* still there if the commit could not be recorded */
    m->attachment.ended = "idle";
    json_object_clear (m->attachment.published);
    gate_unfence (&m->gate);
    control_reply (peer, id, NULL, -1);
  }
  text_free (error);
}

bool
participant_abort (struct mirror *m, const char *class_, const char *reason)
{
  struct participant *p = &m->participant;

  if (!p->active)
    return false;
  if (p->prepared) {
    bool releases = p->releases;

    if (gate_release (&m->gate, p->generation, reason) == EALREADY)
      return participant_commit (m) || !releases; /* a fence holds, recorded or not */
  } else {
    if (decision_try (p->decision, DECISION_ABORT) == DECISION_COMMIT)
      nbdkit_error (
          "mirror: a hand-over was committed before this disk was prepared: this disk stays"
          " with its guest");
    if (p->generation != 0)
      gate_release (&m->gate, p->generation, reason);
    else if (m->attachment.worker != NULL)
      control_event (m->server, m->attachment.worker, "MIRROR_RELEASED",
                     json_pack ("{s:i, s:s}", "generation", 0, "reason", reason));
  }
  participant_refuse (m, class_, reason);
  participant_finish (p);
  participant_drop_draft (m);
  return false;
}
