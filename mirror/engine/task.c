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
#include "mirror/engine/allowance.h"
#include "dirty-bitmap/watch.h"
#include "mirror/engine/internal.h"

/* How often a copier without work looks again while there may be some without anybody telling. */
#define IDLE_NS ((uint64_t)(5 * NS_PER_MS))
#define HURRY_NS ((uint64_t)(NS_PER_MS / 2))
/* Otherwise it sleeps, and this is only the longest wait that poll() is asked for.  A guest that
 * has just written will do so again: it is not to pay for a wake-up each time. */
#define SLEEP_NS ((uint64_t)(600 * NS_PER_S))
#define QUIET_NS ((uint64_t)(200 * NS_PER_MS))
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
  e->wrapped_ns = e->active_ns = now;
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

uint64_t
engine_task_bytes (const struct engine *e, const struct engine_task *t)
{
  uint64_t clean = (uint64_t)__builtin_popcountll (t->clean);

  /* The disk's last block, which may be short, is the last of its run, and that one is dirty. */
  return region_bytes (&e->region->geo, t->first, t->count) - (clean << e->region->geo.block_shift);
}

/* Take a run for copying: busy first (R6), then counted and claimed (R4).  False if the table of
 * busy runs is full. */
static bool
take (struct engine *e, struct engine_task *t)
{
  if (!pass_busy_add (&e->pass, t->first, t->count))
    return false;
  e->active_ns = clock_ns ();
  atomic_store (&e->idle, false);
  if (e->asleep) /* the worker itself has made something dirty again */
    engine_wake_all (e);
  if (e->pass.nr_busy == 1)
    e->busy_since_ns = e->active_ns;
  t->set = claim_enter (e->region);
  engine_drop_samples (e, t->set, t->first, t->count);
  if (t->mixed)
    t->clean = claim_mixed_run (e->region, t->set, t->first, t->count);
  else
    claim_run (e->region, t->set, t->first, t->count);
  untouched_taken (e, t->first, t->count);
  atomic_fetch_add (&e->counters.in_copy_bytes, engine_task_bytes (e, t));
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
  uint64_t wait = allowance_wait (&e->allowance, now);
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
pay (struct engine *e, const struct engine_task *t, uint64_t now)
{
  allowance_take (&e->allowance, region_bytes (&e->region->geo, t->first, t->count), now);
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

/* Blocks in a short request; 0: a block is longer. */
static uint64_t
short_blocks (const struct engine *e)
{
  return ENGINE_SHORT_BYTES >> e->region->geo.block_shift;
}

/* How many clean blocks may be sent along between two dirty ones?  None where bandwidth is limited,
 * and none where the guest waits for us: its write to such a block would wait as well. */
static uint64_t
gap_blocks (const struct engine *e, uint64_t now)
{
  if (!e->options.neighbours || e->catchup.on || e->hurry || e->request_blocks > 64
      || allowance_rate (&e->allowance, e->allowance.rate.rate) != 0)
    return 0;
  return neighbours_gap (&e->neighbours, now) >> e->region->geo.block_shift;
}

/* The next run of the pass that goes on or begins.  PASS_END: there is none now. */
static enum pass_kind
find (struct engine *e, const struct engine_room *room, struct engine_task *t, uint64_t now)
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
    .verify_full = !room->verify,
    .longest = room->only_short ? short_blocks (e) : 0,
    .max_gap = gap_blocks (e, now),
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
  t->mixed = kind == PASS_DATA && o.max_gap > 0;
  return kind;
}

/* There is nothing to copy. */
static void
be_idle (struct engine *e)
{
  atomic_store (&e->idle_seen, true);
  atomic_store (&e->idle, true);
}

/* What a pass copies next. */
static enum engine_work
next_background (struct engine *e, const struct engine_room *room, struct engine_task *t,
                 uint64_t now)
{
  static const enum engine_work work[] = {
    [PASS_DATA] = WORK_DATA, [PASS_VERIFY] = WORK_VERIFY, [PASS_ZERO] = WORK_ZERO,
    [PASS_ASK] = WORK_ASK,   [PASS_LONG] = WORK_NONE,     [PASS_END] = WORK_NONE,
    [PASS_WAIT] = WORK_NONE,
  };
  enum pass_kind kind = find (e, room, t, now);
  bool found = work[kind] != WORK_NONE;
  bool costs = kind != PASS_ZERO || (e->copiers != NULL && e->copiers->zeroes_cost);

  if (kind == PASS_LONG) /* nobody is idle: the copier is full */
    return WORK_NONE;
  if (found)
    open_pass (e);
  if (kind == PASS_ASK) {
    e->pass.hint_pending = true;
    return WORK_ASK;
  }
  if (found && costs && !rate_allows (e, t, now))
    return WORK_NONE;
  if (!found || !take (e, t)) {
    be_idle (e);
    return WORK_NONE;
  }
  if (costs)
    pay (e, t, now);
  return work[kind];
}

/* ---- all together ---- */

/* What a guest's write waits for. */
static enum engine_work
next_urgent (struct engine *e, const struct engine_room *room, struct engine_task *t, uint64_t now)
{
  uint64_t max = engine_request_blocks (e);

  if (room->only_short && max > short_blocks (e))
    max = short_blocks (e);
  if (max == 0 || unreadable_suspended (&e->pass.unreadable, now) || !engine_urgent_next (e, max, t)
      || !rate_allows (e, t, now))
    return WORK_NONE;
  t->urgent = true;
  if (take (e, t)) {
    pay (e, t, now);
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
    w = next_urgent (e, room, t, now);
  if (w == WORK_NONE && room->background) {
    w = next_background (e, room, t, now);
    if (w == WORK_NONE && !t->limited && !turn && room->urgent && e->urgent.nr > 0)
      w = next_urgent (e, room, t, now);
  }
  return w;
}

static uint64_t
fall_asleep (struct engine *e)
{
  e->asleep = true;
  return SLEEP_NS;
}

/* For how long (ns) is everything that is dirty left alone, because it could not be read?  Then the
 * copiers sleep until something else turns dirty, or that time is over.  0: there is more to do. */
static uint64_t
left_alone_ns (struct engine *e, uint64_t now)
{
  uint64_t until = now, blocks = unreadable_left_alone (&e->pass.unreadable, now, &until);

  if (blocks == 0 || e->pass.hint_pending || e->pass.nr_busy > 0)
    return 0;
  /* It is dirty, so the answer is no; but whatever else turns dirty rings the bell now.  The filter
   * counts a block before it rings, so either it is counted here, or the bell is still to come. */
  (void)watch_begin (e->region);
  if (bitmap_count (e->region, REGION_DIRTY) != blocks)
    return 0;
  e->asleep = true;
  return until - now;
}

/* Nothing can be copied now.  For how long is that so, unless somebody wakes the copiers?  A bell
 * that nobody listens to, a synchronous gate that is not caught up, or busy runs in the way: that
 * cannot be told. */
static uint64_t
rest_ns (struct engine *e, uint64_t now)
{
  uint64_t dirty = bitmap_count (e->region, REGION_DIRTY);

  if (e->paused)
    return fall_asleep (e);
  if (!e->watched)
    return e->hurry ? HURRY_NS : IDLE_NS;
  /* The gate does not catch up before all can be read. */
  if (unreadable_suspended (&e->pass.unreadable, now)) {
    e->asleep = true;
    return e->pass.unreadable.source.retry_ns - now;
  }
  uint64_t alone_ns = left_alone_ns (e, now);
  if (alone_ns > 0)
    return alone_ns;
  bool behind = e->catchup.on && !catchup_synchronised (&e->catchup, e->region);
  if (dirty > 0 || e->pass.hint_pending || behind)
    return e->hurry ? HURRY_NS : IDLE_NS;
  if (!e->hurry && now - e->active_ns < QUIET_NS)
    return IDLE_NS;
  return watch_begin (e->region) ? fall_asleep (e) : HURRY_NS;
}

enum engine_work
engine_next (struct engine *e, const struct engine_room *room, struct engine_task *t)
{
  uint64_t now = clock_ns ();
  enum engine_work w = WORK_NONE;

  *t = (struct engine_task){ .wait_ns = 0 };
  pthread_mutex_lock (&e->lock);
  bool flush_ready = engine_flush_step (e, now);
  if (flush_ready && !room->flusher)
    engine_wake_flusher (e);
  if (flush_ready && room->flusher) {
    engine_flush_begin (e, now);
    w = WORK_FLUSH;
  } else if (e->paused)
    be_idle (e);
  else
    w = next_copy (e, room, t, now);
  if (w == WORK_NONE && !t->limited)
    t->wait_ns = t->rest_ns = rest_ns (e, now);
  if (w == WORK_NONE && room->flusher) {
    uint64_t flush_ns = engine_flush_due_ns (e, now);
    if (flush_ns < t->wait_ns)
      t->wait_ns = flush_ns;
  }
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
  atomic_fetch_sub (&e->counters.in_copy_bytes, engine_task_bytes (e, t));
  if (claim_leave (e->region, t->set) && e->flush == FLUSH_DRAIN && t->set == e->flush_set)
    engine_wake_flusher (e);
  /* The last block of all may be what the job's thread waits for. */
  bool last = e->pass.nr_busy == 0
              && (e->hurry || (e->counting && bitmap_count (e->region, REGION_DIRTY) == 0));
  if (last)
    engine_notify (e);
}

void
engine_task_done (struct engine *e, const struct engine_task *t, const void *data, uint64_t length,
                  enum sample_kind kind)
{
  pthread_mutex_lock (&e->lock);
  bool first = e->unflushed_bytes == 0;
  e->unflushed_bytes += region_bytes (&e->region->geo, t->first, t->count);
  if (first)
    engine_wake_flusher (e); /* it may sleep, if the job was paused meanwhile */
  if (length > 0)
    engine_propose_sample (e, t, data, length, kind);
  unsigned nr_unread = e->pass.unreadable.nr;
  unreadable_copied (&e->pass.unreadable, t->first, t->count);
  if (e->pass.unreadable.nr != nr_unread)
    engine_notify (e);
  uint64_t now = clock_ns ();
  latency_add (&e->latency, &t->reply, now);
  if (!t->urgent)
    neighbours_reply (&e->neighbours, &t->reply, now);
  leave (e, t);
  pthread_mutex_unlock (&e->lock);
}

/* Make T's blocks dirty again, but for those that are only sent along: nothing was sent, so the
 * destination still has them.  Their claims go with the next flush. */
static void
give_back (struct engine *e, const struct engine_task *t)
{
  if (t->clean == 0) {
    claim_give_back (e->region, t->set, t->first, t->count);
    return;
  }
  for (uint64_t i = 0; i < t->count; i++)
    if ((t->clean >> i & 1) == 0)
      claim_give_back (e->region, t->set, t->first + i, 1);
}

void
engine_task_unread (struct engine *e, const struct engine_task *t, int err)
{
  pthread_mutex_lock (&e->lock);
  give_back (e, t);
  leave (e, t);
  if (err != ESHUTDOWN) {
    /* A clean block that cannot be read is nobody's loss: the dirty ones are read without it. */
    if (t->clean != 0)
      neighbours_unread (&e->neighbours, clock_ns ());
    else
      unreadable_failed (&e->pass.unreadable, t->first, t->count, err, clock_ns ());
    /* Back to it at once, to find the bad blocks in it. */
    if (t->count > 1 && t->first > 0 && t->first < e->pass.cursor)
      e->pass.cursor = t->first;
    engine_notify (e);
  }
  pthread_mutex_unlock (&e->lock);
}

void
engine_saved (struct engine *e, uint64_t bytes)
{
  atomic_fetch_add (&e->region->hdr->saved_bytes, bytes);
  engine_refund (e, bytes);
}

void
engine_refund (struct engine *e, uint64_t bytes)
{
  pthread_mutex_lock (&e->lock);
  allowance_give (&e->allowance, bytes);
  pthread_mutex_unlock (&e->lock);
}
