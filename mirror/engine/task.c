/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What is copied next, and what follows when a task has ended.  See task.h.
 *
 * engine_next() decides in this order:
 *
 *   a flush that is ready               to the copier that flushes
 *   the job is paused                   nothing
 *   urgent blocks, if it is their turn  urgent.c
 *   the background                      the pass's next run, or nothing
 *   urgent blocks                       out of turn, when the background has nothing to do
 */

#include "config.h"

#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "mirror/engine/internal.h"

#define IDLE_NS (5 * NS_PER_MS)
#define HURRY_NS (NS_PER_MS / 2)
#define PAUSED_NS (100 * NS_PER_MS)
#define LIMITED_NS ((uint64_t)(250 * NS_PER_MS))
#define MAX_ZERO_BYTES (UINT64_C (1) << 30)
#define MAX_ASK_BYTES (UINT64_C (2) << 30)
/* Between two passes with little to do. */
#define PASS_PAUSE_NS ((uint64_t)(50 * NS_PER_MS))
#define PASS_PAUSE_BYTES (UINT64_C (4) << 20)

/* ---- passes ---- */

static uint64_t
dirty_bytes (const struct engine *e)
{
  return bitmap_count (e->region, REGION_DIRTY) << e->region->geo.block_shift;
}

/* A pass has found its first run: open its entry in the log.  While only quarantine keeps the job
 * from being ready, tiny passes over what the guest has just written say nothing. */
static void
open_pass (struct engine *e)
{
  if (e->pass_open || !e->counting
      || (e->pass_number > 0 && bitmap_count (e->region, REGION_QUARANTINE) > 0))
    return;
  e->pass_open = true;
  e->pass_number++;
  e->pass_now = (struct engine_pass){
    .number = e->pass_number,
    .left_before = dirty_bytes (e),
    .sent_bytes = atomic_load (&e->region->hdr->sent_bytes),
    .zero_bytes = atomic_load (&e->region->hdr->zero_bytes),
    .start_ns = clock_ns (),
  };
}

/* The cursor has come to the end of the disk.  While a long write of zeroes is still out, the pass
 * counts as going on: what is copied meanwhile are the guest's latest few writes. */
static void
wrap (struct engine *e, uint64_t now)
{
  catchup_wrapped (&e->catchup, e->region, &e->pass);
  pass_restart (&e->pass);
  e->wrapped_ns = now;
  atomic_fetch_add (&e->wraps, 1);
  engine_notify (e);
  if (!e->pass_open || atomic_load (&e->counters.in_copy_bytes) > ENGINE_BUFFER_BYTES)
    return;
  e->pass_open = false;
  struct engine_pass p = e->pass_now;
  p.left_after = dirty_bytes (e);
  p.sent_bytes = atomic_load (&e->region->hdr->sent_bytes) - p.sent_bytes;
  p.zero_bytes = atomic_load (&e->region->hdr->zero_bytes) - p.zero_bytes;
  p.end_ns = clock_ns ();
  e->pass_log[e->nr_passes++ % ENGINE_MAX_PASS_LOG] = p;
}

/* Nothing is dirty, so the pass is at its end, once what it copies is acknowledged.  While a
 * guest's thread marks, the counter may be one too low: a pass that is to be believed (catchup.h)
 * looks at the bits. */
static void
end_pass_without_dirt (struct engine *e, uint64_t now)
{
  if (e->pass.cursor > 0 && e->pass.nr_busy == 0
      && (!e->catchup.on || bitmap_empty (e->region, REGION_DIRTY)))
    wrap (e, now);
}

/* ---- taking a run ---- */

/* Take a run for copying: busy first (R6), then counted and claimed (R4).  False if the table of
 * busy runs is full. */
static bool
take (struct engine *e, struct engine_task *t)
{
  if (!pass_busy_add (&e->pass, t->first, t->count))
    return false;
  if (e->pass.nr_busy == 1)
    e->busy_since_ns = clock_ns ();
  t->set = claim_enter (e->region);
  engine_drop_samples (e, t->set, t->first, t->count);
  claim_run (e->region, t->set, t->first, t->count);
  atomic_fetch_add (&e->counters.in_copy_bytes, region_bytes (&e->region->geo, t->first, t->count));
  if (!t->urgent)
    e->pass.cursor = t->first + t->count;
  if (e->catchup.on)
    engine_urgent_taken (e, t);
  return true;
}

/* May a request for data go now?  Else T says for how long the bandwidth limit lets it wait. */
static bool
rate_allows (struct engine *e, struct engine_task *t, uint64_t now)
{
  uint64_t wait = e->rate_off ? 0 : rate_wait (&e->rate, now);
  t->limited = wait > 0;
  if (!t->limited)
    return true;
  /* Nothing is wrong: a guest that waits for us, or is throttled because of us, is to go on so. */
  if (e->pass.nr_busy == 0)
    engine_progress (e);
  uint64_t most = e->catchup.on ? e->write_delay_ns / 4 : LIMITED_NS;
  t->wait_ns = wait < most ? wait : most;
  return false;
}

static void
pay (struct engine *e, const struct engine_task *t)
{
  if (!e->rate_off)
    rate_take (&e->rate, region_bytes (&e->region->geo, t->first, t->count));
}

/* ---- the background ---- */

/* Is it worth going over the disk now? */
static bool
may_look (const struct engine *e, bool quarantine_ready, uint64_t now)
{
  uint64_t dirty = bitmap_count (e->region, REGION_DIRTY);
  if (dirty == 0 || unreadable_suspended (&e->pass.unreadable, now))
    return false;
  /* A few writes of the guest gather before the next pass. */
  if (e->pass.cursor == 0 && !e->hurry && now - e->wrapped_ns < PASS_PAUSE_NS
      && dirty_bytes (e) < PASS_PAUSE_BYTES)
    return false;
  /* All that is dirty is in quarantine, which may be the whole disk. */
  return quarantine_ready || dirty > bitmap_count (e->region, REGION_QUARANTINE);
}

static enum pass_kind
look_from_cursor (struct engine *e, struct pass_options *o, struct engine_task *t)
{
  if (e->pass.cursor == 0)
    catchup_begin (&e->catchup, e->region, &e->pass);
  o->wait_number = catchup_wait_number (&e->catchup);
  return pass_next (&e->pass, e->region, o, &t->first, &t->count);
}

/* The next run of the pass that goes on or begins.  PASS_END: there is none now. */
static enum pass_kind
find (struct engine *e, bool can_verify, struct engine_task *t, uint64_t now)
{
  const uint64_t max = engine_request_blocks (e);
  const unsigned shift = e->region->geo.block_shift;
  struct pass_options o = {
    .now_ns = now,
    .max_data = max,
    .max_zero = e->copiers != NULL && e->copiers->zeroes_cost ? max : MAX_ZERO_BYTES >> shift,
    .max_ask = MAX_ASK_BYTES >> shift,
    .min_ask = endpoint_info (e->source)->can_status ? e->request_blocks : 0,
    .quarantine_ready = e->grace_end_ns != 0 && now >= e->grace_end_ns,
    .verify_full = !can_verify,
  };

  if (e->pass.hint_pending)
    return PASS_WAIT;
  if (bitmap_count (e->region, REGION_DIRTY) == 0)
    end_pass_without_dirt (e, now);
  if (!may_look (e, o.quarantine_ready, now))
    return PASS_END;
  enum pass_kind kind = look_from_cursor (e, &o, t);
  if (kind == PASS_END && e->pass.cursor > 0) {
    wrap (e, now);
    kind = look_from_cursor (e, &o, t);
  }
  return kind;
}

/* What a pass copies next. */
static enum engine_work
next_background (struct engine *e, bool can_verify, struct engine_task *t, uint64_t now)
{
  static const enum engine_work work[] = {
    [PASS_DATA] = WORK_DATA, [PASS_VERIFY] = WORK_VERIFY, [PASS_ZERO] = WORK_ZERO,
    [PASS_ASK] = WORK_ASK,   [PASS_END] = WORK_NONE,      [PASS_WAIT] = WORK_NONE,
  };
  enum pass_kind kind = find (e, can_verify, t, now);
  bool found = work[kind] != WORK_NONE;
  bool costs = kind != PASS_ZERO || (e->copiers != NULL && e->copiers->zeroes_cost);

  t->wait_ns = e->hurry ? HURRY_NS : IDLE_NS;
  if (found)
    open_pass (e);
  if (kind == PASS_ASK) {
    e->pass.hint_pending = true;
    return WORK_ASK;
  }
  if (found && costs && !rate_allows (e, t, now))
    return WORK_NONE;
  if (!found || !take (e, t)) {
    atomic_store (&e->idle_seen, true);
    return WORK_NONE;
  }
  if (costs)
    pay (e, t);
  return work[kind];
}

/* ---- all together ---- */

/* What a guest's write waits for. */
static enum engine_work
next_urgent (struct engine *e, struct engine_task *t, uint64_t now)
{
  t->wait_ns = IDLE_NS;
  if (unreadable_suspended (&e->pass.unreadable, now) || !engine_urgent_next (e, t)
      || !rate_allows (e, t, now))
    return WORK_NONE;
  t->urgent = true;
  if (take (e, t)) {
    pay (e, t);
    return WORK_DATA;
  }
  t->urgent = false;
  return WORK_NONE;
}

static enum engine_work
next_copy (struct engine *e, const struct engine_room *room, struct engine_task *t, uint64_t now)
{
  enum engine_work w = WORK_NONE;

  engine_urgent_gather (e);
  bool turn = room->urgent && engine_urgent_turn (e);
  if (turn)
    w = next_urgent (e, t, now);
  if (w == WORK_NONE && room->background) {
    w = next_background (e, room->verify, t, now);
    if (w == WORK_NONE && !t->limited && !turn && room->urgent && e->urgent.nr > 0)
      w = next_urgent (e, t, now);
  }
  return w;
}

enum engine_work
engine_next (struct engine *e, const struct engine_room *room, struct engine_task *t)
{
  uint64_t now = clock_ns ();
  enum engine_work w = WORK_NONE;

  *t = (struct engine_task){ .wait_ns = PAUSED_NS };
  pthread_mutex_lock (&e->lock);
  bool flush_ready = engine_flush_step (e, now);
  if (flush_ready && !room->flusher)
    engine_wake_flusher (e);
  if (flush_ready && room->flusher) {
    engine_flush_begin (e, now);
    w = WORK_FLUSH;
  } else if (e->paused)
    atomic_store (&e->idle_seen, true);
  else
    w = next_copy (e, room, t, now);
  pthread_mutex_unlock (&e->lock);
  return w;
}

/* ---- ends of tasks ---- */

void
engine_hints (struct engine *e, const struct engine_task *t, int err,
              const struct endpoint_extent *extents, unsigned nr)
{
  const struct region_geometry *geo = &e->region->geo;
  pthread_mutex_lock (&e->lock);
  pass_set_hints (&e->pass, t->first << geo->block_shift, region_bytes (geo, t->first, t->count),
                  extents, err ? 0 : nr);
  engine_wake_all (e);
  pthread_mutex_unlock (&e->lock);
}

/* A task has ended.  Its blocks are claimed in its set, or dirty again.  The caller has the
 * lock. */
static void
leave (struct engine *e, const struct engine_task *t)
{
  pass_busy_remove (&e->pass, t->first);
  if (e->catchup.on)
    engine_urgent_settle (e, t);
  if (e->pass.nr_busy == 0)
    e->busy_ns += clock_ns () - e->busy_since_ns;
  atomic_fetch_sub (&e->counters.in_copy_bytes, region_bytes (&e->region->geo, t->first, t->count));
  if (claim_leave (e->region, t->set) && e->flush == FLUSH_DRAIN && t->set == e->flush_set)
    engine_wake_flusher (e);
  if (e->hurry && e->pass.nr_busy == 0)
    engine_notify (e);
}

void
engine_task_done (struct engine *e, const struct engine_task *t, const void *data, uint64_t length)
{
  pthread_mutex_lock (&e->lock);
  e->unflushed_bytes += region_bytes (&e->region->geo, t->first, t->count);
  if (length > 0)
    engine_propose_sample (e, t, data, length);
  unreadable_copied (&e->pass.unreadable, t->first, t->count);
  leave (e, t);
  pthread_mutex_unlock (&e->lock);
}

void
engine_task_unread (struct engine *e, const struct engine_task *t, int err)
{
  pthread_mutex_lock (&e->lock);
  claim_give_back (e->region, t->set, t->first, t->count);
  leave (e, t);
  if (err != ESHUTDOWN) {
    unreadable_failed (&e->pass.unreadable, t->first, t->count, err, clock_ns ());
    /* Back to it at once, to find the bad blocks in it. */
    if (t->count > 1 && t->first > 0 && t->first < e->pass.cursor)
      e->pass.cursor = t->first;
    engine_notify (e);
  }
  pthread_mutex_unlock (&e->lock);
}

void
engine_refund (struct engine *e, uint64_t bytes)
{
  pthread_mutex_lock (&e->lock);
  rate_give (&e->rate, bytes);
  pthread_mutex_unlock (&e->lock);
}
