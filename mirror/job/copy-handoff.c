/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See copy-handoff.h.
 */

#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "mirror/job/copy-internal.h"

#define MAX_LEASE_MS (24 * 3600 * 1000)
#define ARMED_MS 60000 /* how long an armed hand-off waits for its coordinator */

/* No hand-off is active any more.  The generation and the token stay, for who asks later. */
static void
finish (struct copy_handoff *h)
{
  decision_free (h->decision);
  h->decision = NULL;
  json_decref (h->id);
  h->id = NULL;
  h->peer = NULL;
  h->active = h->owed = h->wanted = h->prepared = h->kept = false;
  h->end_ns = 0;
}

void
copy_handoff_free (struct copy_handoff *h)
{
  finish (h);
  text_free (h->fault);
}

static void
answer_generation (struct copy_handoff *h)
{
  if (h->owed)
    control_reply (h->peer, h->id, json_pack ("{s:I}", "generation", (json_int_t)h->generation),
                   -1);
  h->owed = false;
}

/* ---- the decision --------------------------------------------------------------------------- */

/* The word says "commit". */
static void
commit (struct copy_handoff *h)
{
  struct copy *c = h->copy;
  const struct tracker *t = c->o->tracker;

  h->committed = true;
  c->tracked.held = false;
  if (t->commit (t->opaque, &h->fault) == -1)
    c->o->message (c->o->opaque, JOB_ERROR, h->fault);
  c->tracked.pause_ns = clock_ns () - c->tracked.held_ns;
  h->downtime_ms = (double)c->tracked.pause_ns / NS_PER_MS;
  finish (h);
}

bool
copy_handoff_give_up (struct copy_handoff *h, const char *class_, const char *why)
{
  if (h == NULL || !h->active)
    return true;
  if (decision_try (h->decision, DECISION_ABORT) == DECISION_COMMIT) {
    if (h->prepared) {
      commit (h);
      return false;
    }
    h->copy->o->message (h->copy->o->opaque, JOB_ERROR,
                         "a hand-over was committed before this disk was prepared: this disk stays "
                         "with its guest");
  }
  if (h->owed)
    control_error (h->peer, h->id, class_, "the hand-over was given up: %s", why);
  finish (h);
  tracked_release (h->copy);
  return true;
}

bool
copy_handoff_step (struct copy_handoff *h, enum job_result *result)
{
  uint64_t now = clock_ns ();

  if (h == NULL)
    return false;
  if (h->active) {
    enum decision_value word = decision_get (h->decision);
    if (word == DECISION_COMMIT && h->prepared)
      commit (h);
    else if (word != DECISION_UNDECIDED)
      copy_handoff_give_up (h, "GenericError", "another disk, or the coordinator, has ended it");
    else if (h->end_ns != 0 && now > h->end_ns)
      copy_handoff_give_up (h, "LeaseEnded", "the lease ended");
  }
  *result = h->fault != NULL ? JOB_FAILED : JOB_COMPLETED;
  return h->committed;
}

bool
copy_handoff_wants_hold (const struct copy_handoff *h)
{
  return h != NULL && h->active && h->wanted && !h->prepared && !h->copy->tracked.held;
}

void
copy_handoff_prepared (struct copy_handoff *h)
{
  h->prepared = true;
  answer_generation (h);
}

/* ---- commands ------------------------------------------------------------------------------- */

/* NULL, or why no hand-off can begin now, with the error's class. */
static const char *
not_now (const struct copy_handoff *h, bool stopped, const char **class_)
{
  const struct copy *c = h->copy;

  *class_ = "DeviceNotActive";
  if (c == NULL)
    return "the job has not begun yet, or is over";
  *class_ = "Busy";
  if (h->active || c->tracked.held)
    return "another hand-over is under way";
  *class_ = "NotReady";
  if (c->tracked.paused)
    return "the job is not ready: it is paused";
  if (stopped ? c->tracked.passes == 0 || c->supervisor.state != SUPERVISOR_COPYING
              : !c->tracked.ready)
    return "the job is not ready";
  return NULL;
}

void
copy_handoff_prepare (struct copy_handoff *h, struct control_peer *peer, json_t *id, json_t *args,
                      int fd)
{
  CLEANUP_FD int word = fd;
  bool stopped = json_is_true (json_object_get (args, "guest-stopped"));
  const char *token = json_string_value (json_object_get (args, "rollback-token")), *class_;
  json_t *lease = json_object_get (args, "lease-ms");
  json_int_t lease_ms = json_integer_value (lease);
  CLEANUP_TEXT char *error = NULL;
  const char *why = not_now (h, stopped, &class_);

  if (why == NULL) {
    class_ = "GenericError";
    if (lease == NULL)
      lease_ms = (json_int_t)(2 * h->copy->max_downtime_ms);
    if (token == NULL || !rollback_token_valid (token))
      why = "rollback-token is missing, or has other characters than A-Z a-z 0-9 . _ -";
    else if (lease_ms < 1 || lease_ms > MAX_LEASE_MS)
      why = "lease-ms must be 1 to 86400000";
    else if (json_is_true (json_object_get (args, "release"))
             || json_object_get (args, "successor") != NULL)
      why = "QEMU has this disk open by itself: it can be handed over, and nothing else";
    else if (word == -1)
      why = "the decision word is missing: pass it along";
    else if ((h->decision = decision_map (word, &error)) == NULL)
      why = error;
  }
  if (why != NULL) {
    control_error (peer, id, class_, "%s", why);
    return;
  }
  h->active = true;
  h->peer = peer;
  /* Never used again, nor by the next worker, as the filter's (nbd-plugin/mirror/gate.h). */
  h->generation = (h->generation != 0 ? h->generation : (uint64_t)clock_date_us ()) + 1;
  h->guest_stopped = stopped;
  h->lease_ms = (uint64_t)lease_ms;
  h->end_ns = clock_ns () + ARMED_MS * NS_PER_MS;
  snprintf (h->token, sizeof h->token, "%s", token);
  if (json_is_true (json_object_get (args, "arm"))) {
    control_reply (peer, id, json_pack ("{s:b}", "armed", 1), -1);
    return;
  }
  h->wanted = h->owed = true;
  h->id = json_incref (id);
}

void
copy_handoff_prepare_now (struct copy_handoff *h, struct control_peer *peer, json_t *id)
{
  if (!h->active || h->peer != peer || h->wanted) {
    control_error (peer, id, "GenericError", "no hand-over of this connection's is armed");
    return;
  }
  h->wanted = h->owed = true;
  h->id = json_incref (id);
}

/* What the word says. */
static const char *
decision_name (const struct copy_handoff *h)
{
  static const char *const names[] = {
    [DECISION_UNDECIDED] = "undecided", [DECISION_COMMIT] = "commit", [DECISION_ABORT] = "abort"
  };

  return h->committed ? "commit" : names[decision_get (h->decision)];
}

void
copy_handoff_decision (struct copy_handoff *h, struct control_peer *peer, json_t *id, json_t *args)
{
  bool keep = json_is_true (json_object_get (args, "keep"));
  uint64_t now = clock_ns ();

  if (!h->committed && !h->prepared)
    control_error (peer, id, "DeviceNotActive", "no hand-over of this disk is prepared");
  else if (keep && (h->committed || h->peer != peer))
    control_error (peer, id, "GenericError",
                   "only the coordinator of a prepared hand-over can keep it");
  else {
    h->kept = h->kept || keep;
    uint64_t left_ns = h->end_ns > now ? h->end_ns - now : 0;
    control_reply (
        peer, id,
        json_pack ("{s:s, s:I, s:s, s:o}", "decision", decision_name (h), "generation",
                   (json_int_t)h->generation, "rollback-token", h->token, "lease-left-ms",
                   h->committed ? json_null () : json_real ((double)left_ns / NS_PER_MS)),
        h->committed ? -1 : h->decision->fd);
  }
}

static uint64_t
generation_of (const json_t *args)
{
  return (uint64_t)json_integer_value (json_object_get (args, "generation"));
}

void
copy_handoff_release (struct copy_handoff *h, struct control_peer *peer, json_t *id, json_t *args)
{
  uint64_t generation = generation_of (args);

  if (generation != 0 && generation != h->generation)
    control_error (peer, id, "StaleGeneration", "that hold is over, or is not this hand-over's");
  else if (generation == 0 && h->active && h->peer != peer)
    control_error (peer, id, "Busy",
                   "that is another coordinator's hand-over: name its generation");
  else if (h->committed || !copy_handoff_give_up (h, "GenericError", "released"))
    control_error (peer, id, "AlreadyCommitted", "this disk was handed over already");
  else
    control_reply (peer, id, NULL, -1);
}

void
copy_handoff_finalize (struct copy_handoff *h, struct control_peer *peer, json_t *id, json_t *args)
{
  if (generation_of (args) != h->generation || (!h->committed && !h->prepared)) {
    control_error (peer, id, "StaleGeneration", "that hold is over, or is not this hand-over's");
    return;
  }
  if (!h->committed && decision_get (h->decision) != DECISION_COMMIT) {
    control_error (peer, id, "NotDecided", "the decision word does not say commit");
    return;
  }
  if (!h->committed)
    commit (h);
  if (h->fault != NULL)
    control_error (peer, id, "GenericError", "%s", h->fault);
  else
    control_reply (
        peer, id,
        json_pack ("{s:f, s:s}", "downtime-ms", h->downtime_ms, "rollback-token", h->token), -1);
}

void
copy_handoff_peer_closed (struct copy_handoff *h, struct control_peer *peer)
{
  if (!h->active || h->peer != peer)
    return;
  h->owed = false;
  if (h->kept)
    h->peer = NULL;
  else
    copy_handoff_give_up (h, "GenericError", "the coordinator was lost");
}
