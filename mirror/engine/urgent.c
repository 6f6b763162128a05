/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * How the engine serves the synchronous gate: guest writes wait for their blocks (urgent-queue.h),
 * and at some moment nothing else is missing at the destination (catchup.h).
 *
 * Urgent blocks are copied before others, by the same claims and in the same way.  The copiers keep
 * half of their slots for the background (copier.c).  While the job catches up, urgent copying is
 * paid for with the credit that the background earns.  Otherwise a guest that writes as much as the
 * line can carry would keep the pass from ever coming to its end.
 */

#include "config.h"

#include "base/clock.h"
#include "mirror/engine/allowance.h"
#include "mirror/engine/internal.h"

/* One background request takes at most this part of the time that a guest's write may wait. */
#define SHARE_OF_DELAY 8

/* Has a flush been running for longer than any guest's flush may wait? */
static bool
flush_hangs (const struct engine *e)
{
  return e->flush == FLUSH_SENT && clock_ns () - e->flush_start_ns > e->write_delay_ns;
}

/* Something has ended: is the job synchronised now?  While the destination does not flush, the
 * answer would change with each flush of the guest, so it is not asked. */
static void
look (struct engine *e)
{
  if (e->catchup.on && !flush_hangs (e))
    catchup_look (&e->catchup, e->region, &e->pass);
}

static struct urgent_view
view (const struct engine *e)
{
  return (struct urgent_view){
    .pass = &e->pass,
    .synchronised = catchup_synchronised (&e->catchup, e->region),
    /* The pass number does not serve here: a pass may count as going on after the cursor has come
     * to the end, and catchup.h may be about to believe it. */
    .first_pass = atomic_load (&e->wraps) == 0,
    .flush_hangs = flush_hangs (e),
    .next_flush = e->flushes_sent + 1,
  };
}

/* Somebody waits for the next flush.  A flush that is due, and not sent yet, serves for it. */
static void
want_flush (struct engine *e)
{
  if (e->flush == FLUSH_IDLE || e->flush == FLUSH_SENT)
    e->flush_wanted = true;
  engine_wake_flusher (e);
}

void
engine_set_synchronous (struct engine *e, bool on, uint64_t max_write_delay_ns)
{
  pthread_mutex_lock (&e->lock);
  e->write_delay_ns = max_write_delay_ns;
  atomic_store (&e->synchronous, on);
  catchup_set (&e->catchup, on);
  if (!on)
    urgent_queue_refuse (&e->urgent, e->region);
  engine_wake_all (e);
  pthread_mutex_unlock (&e->lock);
  urgent_ring (e->region); /* the bell looks more often now, or less */
}

void
engine_rung (struct engine *e)
{
  pthread_mutex_lock (&e->lock);
  bool woken = e->asleep && !e->paused;
  if (e->copiers == NULL || e->paused || !e->catchup.on)
    urgent_queue_refuse (&e->urgent, e->region);
  if (woken || (e->catchup.on && urgent_any (e->region)))
    engine_wake_all (e);
  pthread_mutex_unlock (&e->lock);
  if (woken)
    engine_notify (e);
}

/* ---- with the lock held ---- */

void
engine_urgent_gather (struct engine *e)
{
  if (!e->catchup.on)
    return;
  look (e); /* also at rest, when no task ends */
  if (!urgent_any (e->region))
    return;
  const struct urgent_view v = view (e);
  if (urgent_queue_gather (&e->urgent, e->region, &v))
    want_flush (e);
}

bool
engine_urgent_turn (const struct engine *e)
{
  return e->urgent.nr > 0
         && (e->urgent.credit > 0 || catchup_synchronised (&e->catchup, e->region));
}

bool
engine_urgent_next (struct engine *e, uint64_t max, struct engine_task *t)
{
  return urgent_queue_next (&e->urgent, e->region, &e->pass, max, &t->first, &t->count);
}

void
engine_urgent_taken (struct engine *e, const struct engine_task *t)
{
  urgent_queue_handed_out (&e->urgent, t->first, t->count);
  if (t->urgent && !catchup_synchronised (&e->catchup, e->region))
    urgent_queue_spend (&e->urgent, region_bytes (&e->region->geo, t->first, t->count));
  else if (!t->urgent)
    urgent_queue_earn (&e->urgent, region_bytes (&e->region->geo, t->first, t->count));
}

void
engine_urgent_settle (struct engine *e, const struct engine_task *t)
{
  const struct urgent_view v = view (e);
  if (e->urgent.nr > 0 && urgent_queue_settle (&e->urgent, e->region, &v, t->first, t->count))
    want_flush (e);
  look (e);
}

void
engine_urgent_flushed (struct engine *e)
{
  if (e->urgent.nr > 0)
    urgent_queue_flushed (&e->urgent, e->region, e->flushes_sent);
}

void
engine_urgent_lost (struct engine *e)
{
  catchup_lost (&e->catchup, e->region);
  urgent_queue_refuse (&e->urgent, e->region);
}

uint64_t
engine_request_blocks (const struct engine *e)
{
  uint64_t rate = allowance_rate (&e->allowance, e->allowance.rate.rate);

  if (!e->catchup.on || rate == 0 || e->allowance.off)
    return e->request_blocks;
  double bytes = (double)rate * (double)e->write_delay_ns / 1e9 / SHARE_OF_DELAY;
  double blocks = bytes / e->region->geo.block_size;
  return blocks >= (double)e->request_blocks ? e->request_blocks
         : blocks < 1                        ? 1
                                             : (uint64_t)blocks;
}
