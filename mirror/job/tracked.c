/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A copy of a disk in use, whose changes a tracker tells.
 *
 * A pass copies all that is dirty, and ends with a flush.  Then the tracker is asked what was
 * changed meanwhile, and that is the next pass.  While the guest runs, what is left at the end of a
 * pass is what the guest has changed in it, so the length of a pass foretells the pause.
 *
 * The hand-over begins at the end of a pass: the guest is stopped, a last pass is copied and
 * flushed, and the tracker must find nothing more before it commits.  A coordinator of several
 * disks says itself when it begins, and commits it (copy-handoff.h).
 */

#include "config.h"

#include "base/clock.h"
#include "base/text.h"
#include "mirror/job/copy-internal.h"

#define LOOK_MS 100 /* at least so long between two looks: each disturbs the guest a little */
#define FITTING_PASSES 2
#define MOST_PASSES 30
#define MOST_SENT 3 /* times the disk's size */
#define RETRY_MS 1000

/* The hold is given up after twice the allowed pause.  The tracker's own limit is behind that, for
 * a worker that is stopped itself. */
#define LEASE_MARGIN_MS 3000

static void
tell (struct copy *c, enum job_message kind, char *text)
{
  c->o->message (c->o->opaque, kind, text);
  text_free (text);
}

static void
mark (void *opaque, uint64_t offset, uint64_t length)
{
  struct copy *c = opaque;
  uint64_t size = c->region->geo.disk_size;

  if (offset >= size)
    return;
  if (length > size - offset)
    length = size - offset;
  bitmap_mark (c->region, offset, length);
  c->tracked.changed_bytes += length;
}

int
tracked_begin (struct copy *c, char **error)
{
  const struct tracker *t = c->o->tracker;

  c->tracked.pass_runs = true;
  c->tracked.pass_ns = clock_ns ();
  return t->start (t->opaque, c->region->geo.disk_size, c->region->geo.block_size, error);
}

/* What was changed since the last look becomes the next pass.  0, or -1: the job has failed. */
static int
look (struct copy *c)
{
  const struct tracker *t = c->o->tracker;
  struct tracked *p = &c->tracked;
  char *error = NULL;

  uint64_t now = clock_ns ();
  p->changed_bytes = 0;
  if (t->take (t->opaque, mark, c, &error) == -1) {
    tell (c, JOB_ERROR, error);
    return -1;
  }
  p->dirty_rate = (double)p->changed_bytes * NS_PER_S / (double)(now - p->pass_ns);
  p->pass_ns = now;
  p->pass_runs = true;
  p->look_ns = clock_ns () + LOOK_MS * NS_PER_MS;
  c->flush_asked = false;
  engine_rung (&c->engine);
  return 0;
}

/* ---- while the guest runs ----------------------------------------------------------------- */

static void
end_pass (struct copy *c)
{
  struct tracked *p = &c->tracked;

  p->pass_runs = false;
  p->passes++;
  p->last_pass_ns = clock_ns () - p->pass_ns;
  bool fits = p->passes > 1 && p->last_pass_ns <= c->max_downtime_ms * NS_PER_MS;
  p->fitting = fits ? p->fitting + 1 : 0;
  p->ready = p->fitting >= FITTING_PASSES;
}

/* True when the user wants it to end because it does not converge. */
static bool
does_not_converge (struct copy *c)
{
  struct tracked *p = &c->tracked;
  uint64_t sent = atomic_load (&c->region->hdr->sent_bytes);

  if (p->ready || p->told_slow
      || (p->passes < MOST_PASSES && sent / MOST_SENT < c->region->geo.disk_size))
    return false;
  p->told_slow = true;
  tell (c, c->fail_if_slow ? JOB_ERROR : JOB_WARNING,
        text_printf ("not converging: pass %u took %.0f ms, and the allowed pause is %.0f ms",
                     p->passes, (double)p->last_pass_ns / NS_PER_MS, (double)c->max_downtime_ms));
  return c->fail_if_slow;
}

static bool
wants_to_complete (struct copy *c)
{
  bool asked = atomic_load (c->o->signal) == JOB_SIGNAL_COMPLETE;
  const struct copy_handoff *h = copy_server_handoff (c->o->server);

  if (h != NULL && h->active)
    return false;
  if (asked && !c->tracked.ready && !c->tracked.told_wait) {
    c->tracked.told_wait = true;
    tell (c, JOB_NOTICE, text_copy ("not ready yet: the hand-over begins as soon as it is"));
  }
  return c->tracked.ready && (asked || c->o->complete_when_ready);
}

/* ---- while it is held --------------------------------------------------------------------- */

void
tracked_release (struct copy *c)
{
  const struct tracker *t = c->o->tracker;
  char *error = NULL;

  if (t == NULL || !c->tracked.held)
    return;
  c->tracked.held = false;
  engine_set_hurry (&c->engine, false, false);
  if (t->release (t->opaque, &error) == -1)
    tell (c, JOB_ERROR, error);
}

/* Something was wrong with the hand-over: the guest goes on, and it is tried again later. */
static void
give_up_hold (struct copy *c, char *why)
{
  struct tracked *p = &c->tracked;

  if (!copy_handoff_give_up (copy_server_handoff (c->o->server), "GenericError", why)) {
    text_free (why); /* it was committed in this very moment */
    return;
  }
  tracked_release (c);
  p->fitting = 0;
  p->ready = false;
  p->retry_ns = clock_ns () + RETRY_MS * NS_PER_MS;
  tell (c, JOB_WARNING, why);
}

static bool
hold_guest (struct copy *c, enum job_result *result)
{
  const struct tracker *t = c->o->tracker;
  struct copy_handoff *h = copy_server_handoff (c->o->server);
  bool asked = h != NULL && h->active;
  uint64_t lease_ms = asked ? h->lease_ms : 2 * c->max_downtime_ms;
  const struct tracker_hold hold = { .lease_ms = lease_ms + LEASE_MARGIN_MS,
                                     .decision = asked ? h->decision : NULL,
                                     .stopped = asked && h->guest_stopped };
  char *error = NULL;

  *result = JOB_FAILED;
  c->tracked.held_ns = clock_ns ();
  c->tracked.held = true; /* an error may come after the guest was stopped */
  if (asked)
    h->end_ns = c->tracked.held_ns + lease_ms * NS_PER_MS;
  if (t->hold (t->opaque, &hold, &error) == -1) {
    give_up_hold (c, text_printf ("the guest goes on: %s", error));
    text_free (error);
    return false;
  }
  engine_set_hurry (&c->engine, true, false);
  return look (c) == -1;
}

/* Everything that was told is at the destination. */
static bool
commit (struct copy *c, enum job_result *result)
{
  const struct tracker *t = c->o->tracker;
  struct copy_handoff *h = copy_server_handoff (c->o->server);
  char *error = NULL;

  if (look (c) == -1) {
    *result = JOB_FAILED;
    return true;
  }
  if (c->tracked.changed_bytes > 0)
    return false;
  *result = JOB_FAILED;
  bool good = t->check (t->opaque, &error) == 0;
  if (good && h != NULL && h->active) {
    copy_handoff_prepared (h);
    return false;
  }
  if (!good || t->commit (t->opaque, &error) == -1) {
    tell (c, JOB_ERROR, text_printf ("not handed over, and the guest goes on: %s", error));
    copy_handoff_give_up (h, "GenericError", error);
    text_free (error);
    return true;
  }
  c->tracked.held = false;
  c->tracked.pause_ns = clock_ns () - c->tracked.held_ns;
  *result = JOB_COMPLETED;
  return true;
}

static bool
held_step (struct copy *c, enum job_result *result)
{
  const struct copy_handoff *h = copy_server_handoff (c->o->server);
  uint64_t limit = 2 * c->max_downtime_ms * NS_PER_MS;

  if (h != NULL && h->prepared)
    return false;
  if ((h == NULL || !h->active) && clock_ns () - c->tracked.held_ns > limit) {
    give_up_hold (c, text_copy ("the last pass took longer than twice the allowed pause: the guest "
                                "goes on, and it is tried again"));
    return false;
  }
  return copy_all_done (c) && commit (c, result);
}

bool
tracked_step (struct copy *c, enum job_result *result)
{
  struct tracked *p = &c->tracked;

  if (c->supervisor.state == SUPERVISOR_WAITING && c->supervisor.problem == SESSION_SOURCE) {
    /* The tracker lives where the source does, so it is most likely gone as well. */
    tell (c, JOB_ERROR, text_printf ("source lost: %s", c->supervisor.error));
    *result = JOB_FAILED;
    return true;
  }
  if (c->supervisor.state != SUPERVISOR_COPYING) {
    p->fitting = 0;
    p->ready = false;
    if (p->held)
      give_up_hold (c, text_copy ("the destination was lost in the hand-over: the guest goes on"));
    c->flush_asked = false;
    p->pass_runs = true; /* what was not flushed is dirty again */
    return false;
  }
  if (p->held)
    return held_step (c, result);
  if (p->paused)
    return false;
  if (copy_handoff_wants_hold (copy_server_handoff (c->o->server)))
    return hold_guest (c, result);
  if (p->pass_runs) {
    if (!copy_all_done (c))
      return false;
    end_pass (c);
    if (does_not_converge (c)) {
      *result = JOB_NOT_CONVERGED;
      return true;
    }
    if (wants_to_complete (c) && clock_ns () >= p->retry_ns)
      return hold_guest (c, result);
  }
  *result = JOB_FAILED;
  return clock_ns () >= p->look_ns && look (c) == -1;
}

void
tracked_end (struct copy *c, enum job_result *result)
{
  struct copy_handoff *h = copy_server_handoff (c->o->server);

  if (!copy_handoff_give_up (h, "GenericError", "the job has ended"))
    copy_handoff_step (h, result);
  tracked_release (c);
}

void
tracked_set_paused (struct copy *c, bool paused)
{
  c->tracked.paused = paused;
  c->tracked.fitting = 0;
  c->tracked.ready = false;
  engine_set_paused (&c->engine, paused);
  estimate_lost (&c->estimate);
}

bool
tracked_rests (const struct copy *c)
{
  return c->o->tracker != NULL && !c->tracked.held && !c->tracked.pass_runs
         && c->supervisor.state == SUPERVISOR_COPYING;
}

const char *
tracked_state (const struct copy *c)
{
  return c->tracked.held     ? "holding"
         : c->tracked.paused ? "paused"
         : c->tracked.ready  ? "ready"
                             : "copying";
}
