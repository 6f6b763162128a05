/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Protocol commands of the worker.  See nbdmirror-control(7).
 */

#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "nbd-plugin/mirror/commands.h"
#include "nbd-plugin/mirror/filter.h"
#include "nbd-plugin/mirror/status.h"

static void
attach (struct call *c)
{
  const char *start = call_string (c, "start");
  const char *waiters = call_string (c, "waiters");

  if (start != NULL && strcmp (start, "new") != 0 && strcmp (start, "resume") != 0
      && strcmp (start, "restart") != 0)
    control_error (c->peer, c->id, "GenericError",
                   "start must be new, resume or restart, not '%.64s'", start);
  else if (waiters != NULL && strcmp (waiters, "error") != 0 && strcmp (waiters, "keep") != 0)
    control_error (c->peer, c->id, "GenericError", "waiters must be error or keep, not '%.64s'",
                   waiters);
  else
    attachment_attach (c->m, c->peer, c->id, c->args);
}

static void
progress (struct call *c)
{
  char *error = NULL;

  if (attachment_publish (&c->m->attachment, c->args, &error) == 0)
    control_reply (c->peer, c->id, NULL, -1);
  else
    control_error (c->peer, c->id, "GenericError", "%s", error);
  text_free (error);
}

static void
hold (struct call *c)
{
  struct mirror *m = c->m;
  struct participant *p = &m->participant;
  int64_t lease = p->active ? p->lease_ms : attachment_default_lease_ms (&m->attachment);
  uint64_t generation = 0;
  struct gate_view gate;
  char *error = NULL;

  if (!call_lease_ok (c))
    return;
  if (p->active && p->arm) {
    control_error (c->peer, c->id, "Busy", "the coordinator holds the gate when all are armed");
    return;
  }
  lease = call_integer (c, "lease-ms", lease);
  gate_look (&m->gate, &gate);
  if (p->active && gate.mode == GATE_OPEN && participant_draft (m, &error) == -1) {
    control_error (c->peer, c->id, "GenericError", "%s", error);
    text_free (error);
    return;
  }
  switch (gate_hold (&m->gate, lease * NS_PER_MS, &generation)) {
  case 0:
    break;
  case EBUSY:
    control_error (c->peer, c->id, "Busy", "the gate is held already");
    return;
  case EPERM:
    control_error (c->peer, c->id, "Fenced", "this disk was handed over");
    return;
  default:
    control_error (c->peer, c->id, "GenericError", "the server stops");
    return; /* which removes the draft */
  }
  if (p->active)
    p->generation = generation;
  m->attachment.hold.peer = c->peer; /* answered when the requests below are drained */
  m->attachment.hold.id = json_incref (c->id);
  m->attachment.hold.generation = generation;
}

static void
set_gate (struct call *c)
{
  static const char *const names[] = { "open", "throttled", "synchronous" };
  struct mirror *m = c->m;
  const char *name = call_string (c, "mode");
  json_t *delay = json_object_get (c->args, "max-write-delay-ms");
  int64_t limit = call_integer (c, "dirty-limit", 0);
  struct pace_view pace;
  struct gate_view gate;
  unsigned mode = 0;

  while (mode <= PACE_SYNCHRONOUS && strcmp (name, names[mode]) != 0)
    mode++;
  pace_look (&m->pace, &pace);
  double delay_ns = delay != NULL ? json_number_value (delay) * 1e6 : (double)pace.max_delay_ns;
  gate_look (&m->gate, &gate);
  if (mode > PACE_SYNCHRONOUS)
    control_error (c->peer, c->id, "GenericError",
                   "mode must be open, throttled or synchronous, not '%.64s'", name);
  else if (mode == PACE_THROTTLED && limit < 1)
    control_error (c->peer, c->id, "GenericError",
                   "a throttled gate needs a dirty-limit of at least 1 byte a second");
  else if (delay_ns < 1e3 || delay_ns > (double)PACE_MAX_DELAY_NS)
    control_error (c->peer, c->id, "GenericError", "max-write-delay-ms must be 0.001 to %lld",
                   (long long)(PACE_MAX_DELAY_NS / NS_PER_MS));
  else if (gate.mode == GATE_FENCED || m->attachment.region == NULL)
    control_error (c->peer, c->id, "Fenced", "this disk was handed over");
  else {
    pace_set (&m->pace, m->attachment.region, (enum pace_mode)mode, (uint64_t)limit,
              (int64_t)delay_ns);
    control_reply (c->peer, c->id, NULL, -1);
  }
}

static void
prepared (struct call *c)
{
  participant_prepared (c->m, c->peer, c->id, (uint64_t)call_integer (c, "generation", 0),
                        (uint64_t)call_integer (c, "session", 0));
}

static void
unhold (struct call *c)
{
  struct mirror *m = c->m;
  struct participant *p = &m->participant;
  uint64_t generation = (uint64_t)call_integer (c, "generation", 0);

  if (p->active && p->arm && (generation == 0 || generation == p->generation)) {
    const char *class_ = call_string (c, "class"), *reason = call_string (c, "reason");
    if (participant_worker_gives_up (m, class_ != NULL ? class_ : "GenericError",
                                     reason != NULL ? reason : "released by the worker"))
      control_reply (c->peer, c->id, NULL, -1);
    else
      control_error (c->peer, c->id, "AlreadyCommitted", "the hand-over is committed already");
    return;
  }
  /* A commit has taken the job's region away.  The worker has not heard of it yet. */
  int r = m->attachment.region == NULL ? EALREADY
          : generation == 0            ? ESTALE
                                       : gate_release (&m->gate, generation, "released");

  if (r == EALREADY)
    control_error (c->peer, c->id, "AlreadyCommitted", "the hand-over is committed already");
  else if (r != 0)
    control_error (c->peer, c->id, "StaleGeneration", "that hold is over");
  else {
    if (p->active && p->prepared)
      participant_abort (m, "GenericError", "released by the worker");
    else
      participant_unhold (m); /* it may hold again */
    control_reply (c->peer, c->id, NULL, -1);
  }
}

static void
reply (struct call *c)
{
  struct relay *r = relay_take (&c->m->attachment.relays, (uint64_t)call_integer (c, "request", 0));
  json_t *ret = json_object_get (c->args, "return");
  json_t *error = json_object_get (c->args, "error");

  control_reply (c->peer, c->id, NULL, -1);
  if (r == NULL)
    return; /* its limit has passed, or its asker has left */
  if (r->prepare) {
    participant_worker_answer (c->m, r, ret, error);
    return;
  }
  if (error != NULL) {
    const char *class_ = json_string_value (json_object_get (error, "class"));
    const char *desc = json_string_value (json_object_get (error, "desc"));
    control_error (r->peer, r->id, class_ != NULL ? class_ : "GenericError", "%s",
                   desc != NULL ? desc : "the worker refused");
  } else
    control_reply (r->peer, r->id, json_incref (ret), -1);
  relay_free (r);
}

static void
detach (struct call *c)
{
  struct mirror *m = c->m;
  const char *state = call_string (c, "state"), *reason = call_string (c, "reason");
  json_t *event = mirror_block_job_event (m);
  struct gate_view gate;

  if (strcmp (state, "cancelled") == 0) {
    participant_worker_gone (m, "cancelled", reason);
    attachment_finished (m);
    control_event (m->server, NULL, "BLOCK_JOB_CANCELLED", event);
  } else if (strcmp (state, "failed") == 0) {
    participant_worker_gone (m, "failed", reason);
    json_object_set_new (event, "error",
                         json_string (reason != NULL ? reason : "the worker gave up"));
    control_event (m->server, NULL, "BLOCK_JOB_COMPLETED", event);
  } else if (strcmp (state, "detached") == 0 || strcmp (state, "completed") == 0) {
    json_decref (event);
    gate_look (&m->gate, &gate);
    /* Without a fence and without a region it has ended at an instant, and nothing is left over. */
    bool released = m->attachment.region == NULL && gate.mode == GATE_OPEN;
    participant_worker_gone (m, released ? "completed" : "detached", reason);
    if (m->attachment.region == NULL) /* committed: nothing is left to write to anything */
      attachment_finished (m);
  } else {
    json_decref (event);
    control_error (c->peer, c->id, "GenericError",
                   "state must be detached, cancelled, failed or completed, not '%.64s'", state);
    return;
  }
  control_reply (c->peer, c->id, NULL, -1);
}

const struct command worker_commands[] = {
  { "mirror-attach", "start:s waiters:s since:s", attach, false },
  { "mirror-progress", "", progress, true },
  { "mirror-gate", "mode:s! dirty-limit:i max-write-delay-ms:n", set_gate, true },
  { "mirror-hold", "lease-ms:i", hold, true },
  { "mirror-prepared", "generation:i! session:i!", prepared, true },
  { "mirror-unhold", "generation:i! reason:s class:s", unhold, true },
  { "mirror-reply", "request:i! return:o error:o", reply, true },
  { "mirror-detach", "state:s! reason:s", detach, true },
  { NULL, NULL, NULL, false },
};
