/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The simulator.  See sim.h.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "mirror/job/estimate.h"
#include "tests/sim/guest.h"
#include "tests/sim/sim.h"

#define STEP_S 0.001
#define PASS_PAUSE_MS 50 /* as in engine.c */
#define PASS_PAUSE_BYTES (UINT64_C (4) << 20)
#define BURST_S 0.1    /* as rate.c */
#define SETTLE_MS 1000 /* as mirror/job/final.c */
/* On a line without a limit so many background requests lie before each urgent one. */
#define LINE_QUEUE_BYTES (2.0 * 1048576)
#define URGENT_CATCHING_UP 0.25
#define URGENT_SYNCHRONISED 0.5
#define URGENT_CREDIT_S 0.01
#define MAX_THREADS 1024
#define AGAIN 0x80 /* in history */

enum wait { NOT_WAITING, WAITS_THROTTLED, WAITS_URGENT, WAITS_ANSWER };

struct thread {
  enum wait wait;
  uint64_t first;      /* block */
  double since, until; /* ms: it began to wait, and its delay or its answer ends */
};

struct sim {
  const struct sim_options *o;
  struct guest guest;
  struct estimate estimate;
  struct converge converge;
  double now; /* ms */

  uint64_t nr_blocks, nr_dirty;
  uint8_t *dirty;   /* 1 or 0 */
  uint8_t *history; /* bit 0: dirtied in this pass, 1: in the last one ... */
  bool hot_phase;   /* deferred blocks are copied now */

  /* The line. */
  double budget, credit;
  uint64_t acked, dirtied;
  double busy_ms;
  bool idle_seen;

  /* Passes, as engine.c. */
  uint64_t cursor;
  bool counting, pass_open;
  uint64_t pass_before, last_before, last_after;
  unsigned pass_number, nr_passes, wraps;
  double wrapped_ms;

  /* The gate. */
  enum converge_gate gate;
  double limit, bucket_ms; /* bucket_ms: when the bucket will have paid for everything so far */
  uint64_t epoch, cursor_epoch;
  bool synchronised;
  double waiting;
  struct thread threads[MAX_THREADS];
  unsigned queue[MAX_THREADS], nr_queue; /* urgent requests, oldest first */

  double wanted, done;           /* bytes the guest wanted to write, and wrote */
  double calm_wanted, calm_done; /* up to calm_after_s */
  double guest_budget;
  struct sim_result result;
};

struct sim_options
sim_defaults (void)
{
  return (struct sim_options){
    .disk_bytes = UINT64_C (1) << 30,
    .bandwidth = 100.0 * 1048576,
    .capped = true,
    .policy = POLICY_SYNC,
    .guest = SIM_UNIFORM,
    .guest_rate = 2000.0 * SIM_BLOCK,
    .on_s = 5,
    .threads = 16,
    .request_blocks = 1,
    .max_write_delay_ms = 50,
    .max_downtime_ms = 300,
    .flush_ms = 5,
    .rtt_ms = 0.5,
    .give_up_s = 120,
    .seed = 1,
  };
}

/* ---- the disk ---- */

static unsigned
mark (struct sim *s, uint64_t first)
{
  unsigned turned = 0;
  for (uint64_t b = first; b < first + s->o->request_blocks && b < s->nr_blocks; b++) {
    turned += !s->dirty[b];
    s->dirty[b] = 1;
    s->history[b] |= 1;
    if (s->o->ahead_twice && s->wraps == 0 && b >= s->cursor)
      s->history[b] |= AGAIN;
  }
  s->nr_dirty += turned;
  s->dirtied += turned;
  return turned;
}

static void
copy_block (struct sim *s, uint64_t block)
{
  bool again = s->history[block] & AGAIN;
  s->history[block] &= (uint8_t)~AGAIN;
  s->dirty[block] = again;
  s->nr_dirty -= !again;
  s->acked += SIM_BLOCK;
  s->budget -= SIM_BLOCK;
}

static bool
range_dirty (const struct sim *s, uint64_t first)
{
  uint64_t n
      = s->nr_blocks - first < s->o->request_blocks ? s->nr_blocks - first : s->o->request_blocks;
  return memchr (s->dirty + first, 1, n) != NULL;
}

/* ---- the guest and its gate ---- */

static void
finish (struct sim *s, struct thread *t)
{
  double delay = s->now - t->since;
  if (delay > s->result.longest_delay_ms)
    s->result.longest_delay_ms = delay;
  t->wait = NOT_WAITING;
}

static void
pay (struct sim *s, struct thread *t, unsigned turned)
{
  double most = s->now + s->o->max_write_delay_ms;
  if (s->bucket_ms < s->now)
    s->bucket_ms = s->now;
  s->bucket_ms += turned * (double)SIM_BLOCK / s->limit * 1000;
  if (s->bucket_ms > most)
    s->bucket_ms = most; /* what goes beyond that is not charged */
  t->wait = WAITS_THROTTLED;
  t->until = s->bucket_ms;
}

static void
issue (struct sim *s, unsigned i)
{
  struct thread *t = &s->threads[i];

  t->first = guest_next (&s->guest);
  t->since = s->now;
  unsigned turned = mark (s, t->first);
  s->done += s->o->request_blocks * (double)SIM_BLOCK;
  if (s->gate == CONVERGE_THROTTLED && turned > 0)
    pay (s, t, turned);
  else if (s->gate == CONVERGE_SYNCHRONOUS) {
    bool ahead = s->pass_number <= 1 && s->wraps == 0 && t->first >= s->cursor;
    t->wait = ahead ? WAITS_ANSWER : WAITS_URGENT;
    t->until = s->now + (ahead ? s->o->rtt_ms : s->o->max_write_delay_ms);
    if (!ahead)
      s->queue[s->nr_queue++] = i;
  }
}

static void
run_guest (struct sim *s)
{
  double bytes = s->o->request_blocks * (double)SIM_BLOCK;
  unsigned free = 0;

  for (unsigned i = 0; i < s->o->threads; i++) {
    struct thread *t = &s->threads[i];
    if (t->wait != NOT_WAITING && s->now >= t->until) {
      if (t->wait
          == WAITS_URGENT) { /* it was missed, and leaves the queue when the line comes to it */
        s->epoch++;
        s->synchronised = false;
      }
      finish (s, t);
    }
    free += t->wait == NOT_WAITING;
  }
  unsigned kept = 0; /* threads that go on waiting */
  for (unsigned k = 0; k < s->nr_queue; k++)
    if (s->threads[s->queue[k]].wait == WAITS_URGENT)
      s->queue[kept++] = s->queue[k];
  s->nr_queue = kept;

  double want = guest_rate (&s->guest, (uint64_t)s->now) * STEP_S;
  s->wanted += want;
  s->guest_budget += want;
  if (s->o->forgets && s->guest_budget > want + s->o->threads * bytes)
    s->guest_budget = want + s->o->threads * bytes;
  for (unsigned i = 0; free > 0 && s->guest_budget >= bytes; i = (i + 1) % s->o->threads) {
    struct thread *t = &s->threads[i];
    if (t->wait != NOT_WAITING)
      continue;
    issue (s, i);
    s->guest_budget -= bytes;
    free -= t->wait != NOT_WAITING;
  }
}

/* ---- the line ---- */

/* Carry waiting requests for at most *CREDIT bytes. */
static void
run_urgent (struct sim *s, double *credit)
{
  unsigned k = 0;
  double latency = s->o->rtt_ms + (s->o->capped ? 0 : LINE_QUEUE_BYTES / s->o->bandwidth * 1000);

  for (; k < s->nr_queue; k++) {
    struct thread *t = &s->threads[s->queue[k]];
    for (uint64_t b = t->first; b < t->first + s->o->request_blocks && b < s->nr_blocks; b++)
      if (s->dirty[b] && s->budget > 0 && *credit > 0) {
        copy_block (s, b);
        *credit -= SIM_BLOCK;
      }
    if (range_dirty (s, t->first))
      break;
    t->wait = WAITS_ANSWER;
    if (s->now + latency > t->until) {
      s->epoch++; /* too late by then */
      s->synchronised = false;
    } else
      t->until = s->now + latency;
  }
  s->nr_queue -= k;
  memmove (s->queue, s->queue + k, s->nr_queue * sizeof s->queue[0]);
}

static void
wrap (struct sim *s)
{
  s->cursor = 0;
  s->hot_phase = false;
  s->wraps++;
  s->wrapped_ms = s->now;
  if (s->epoch == s->cursor_epoch)
    s->synchronised = s->gate == CONVERGE_SYNCHRONOUS;
  s->cursor_epoch = s->epoch;
  for (uint64_t b = 0; s->o->defer_hot && b < s->nr_blocks; b++)
    s->history[b] = (uint8_t)(s->history[b] << 1 & 7);
  if (s->pass_open) {
    s->pass_open = false;
    s->last_before = s->pass_before;
    s->last_after = s->nr_dirty * SIM_BLOCK;
    s->nr_passes++;
  }
}

static bool
deferred (const struct sim *s, uint64_t b)
{
  return s->o->defer_hot && __builtin_popcount (s->history[b] & 7) >= 2;
}

/* The next block in the pass's order from the cursor on, or nr_blocks. */
static uint64_t
next_block (struct sim *s)
{
  for (;;) {
    const uint8_t *p = s->cursor < s->nr_blocks
                           ? memchr (s->dirty + s->cursor, 1, s->nr_blocks - s->cursor)
                           : NULL;
    if (p == NULL) {
      if (!s->o->defer_hot || s->hot_phase)
        return s->nr_blocks;
      s->hot_phase = true;
      s->cursor = 0;
      continue;
    }
    s->cursor = (uint64_t)(p - s->dirty);
    if (deferred (s, s->cursor) == s->hot_phase || !s->o->defer_hot)
      return s->cursor;
    s->cursor++;
  }
}

/* Copy in block order for as long as the budget lasts. */
static void
run_background (struct sim *s)
{
  bool again = false; /* the clock stands still here, so one round is enough */

  while (s->budget > 0) {
    if (s->nr_dirty == 0 && s->cursor > 0)
      wrap (s);
    if (s->nr_dirty == 0
        || (s->cursor == 0 && !s->hot_phase && s->wraps > 0
            && s->now - s->wrapped_ms < PASS_PAUSE_MS
            && s->nr_dirty * SIM_BLOCK < PASS_PAUSE_BYTES)) {
      s->idle_seen = true;
      return;
    }
    if (!s->pass_open && s->counting) {
      s->pass_open = true;
      s->pass_number++;
      s->pass_before = s->nr_dirty * SIM_BLOCK;
    }
    uint64_t b = next_block (s);
    if (b == s->nr_blocks) {
      wrap (s);
      if (again)
        return;
      again = true;
      continue;
    }
    copy_block (s, b);
    s->cursor = b + 1;
  }
}

static void
run_line (struct sim *s)
{
  double step = s->o->bandwidth * STEP_S, most = s->o->capped ? s->o->bandwidth * BURST_S : step;
  uint64_t before = s->acked;

  s->budget += step;
  if (s->budget > most)
    s->budget = most;
  s->credit += step * (s->synchronised ? URGENT_SYNCHRONISED : URGENT_CATCHING_UP);
  if (s->credit > s->o->bandwidth * URGENT_CREDIT_S)
    s->credit = s->o->bandwidth * URGENT_CREDIT_S;
  if (s->nr_dirty == 0)
    s->synchronised = s->gate == CONVERGE_SYNCHRONOUS;
  run_urgent (s, &s->credit);
  run_background (s);
  double rest = s->budget; /* there is nothing else to do with it */
  run_urgent (s, &rest);
  if (s->acked > before)
    s->busy_ms += 1;
}

/* ---- the job ---- */

static void
sample (struct sim *s, bool suspended)
{
  const struct sim_options *o = s->o;
  const struct estimate_costs costs
      = { .flush_ns = (uint64_t)(o->flush_ms * 1e6), .rtt_ns = (uint64_t)(o->rtt_ms * 1e6) };
  const struct estimate_sample es = {
    .now_ns = (uint64_t)s->now * NS_PER_MS,
    .acked_bytes = s->acked,
    .dirtied_bytes = s->dirtied * SIM_BLOCK,
    .left_bytes = s->nr_dirty * SIM_BLOCK,
    .busy_ns = (uint64_t)s->busy_ms * NS_PER_MS,
    .limit = o->capped ? (uint64_t)o->bandwidth : 0,
    .queue_full = !s->idle_seen,
  };
  s->idle_seen = false;
  estimate_add (&s->estimate, &es, &costs, o->max_downtime_ms);
  s->counting = !s->estimate.ready;

  unsigned waiting = 0;
  for (unsigned i = 0; i < o->threads; i++)
    waiting += s->threads[i].wait >= WAITS_URGENT;
  s->waiting = s->gate != CONVERGE_SYNCHRONOUS ? -1
               : s->waiting < 0                ? waiting
                                               : 0.9 * s->waiting + 0.1 * waiting;
  const struct converge_input in = {
    .now_ns = es.now_ns,
    .policy = o->policy,
    .disk_bytes = o->disk_bytes,
    .sent_bytes = s->acked,
    .left_bytes = es.left_bytes,
    .dirtied_bytes = es.dirtied_bytes,
    .passes = s->nr_passes,
    .pass_before = s->last_before,
    .pass_after = s->last_after,
    .bandwidth = s->estimate.bandwidth,
    .dirty_rate = s->estimate.dirty_rate,
    .fixed_ms = s->estimate.fixed_ms,
    .trip_ms = s->estimate.trip_ms,
    .max_write_delay_ms = o->max_write_delay_ms,
    .max_downtime_ms = o->max_downtime_ms,
    .waiting = s->waiting,
    .ready = s->estimate.ready,
    .suspended = suspended,
  };
  if (converge_decide (&s->converge, &in)) {
    if (s->gate != CONVERGE_SYNCHRONOUS && s->converge.gate == CONVERGE_SYNCHRONOUS)
      s->epoch++;
    s->result.switches += s->gate != s->converge.gate;
    s->gate = s->converge.gate;
    s->result.waited = s->result.waited || s->gate == CONVERGE_SYNCHRONOUS;
    s->limit = (double)s->converge.dirty_limit;
    if (s->result.first_slowed_s < 0)
      s->result.first_slowed_s = s->now / 1000;
  }
  if (s->converge.verdict == CONVERGING_NO)
    s->result.ever_said_no = true;
}

static void
step (struct sim *s)
{
  s->now += 1;
  if (s->now == s->o->calm_after_s * 1000) {
    s->guest.rate = s->o->calm_rate;
    s->guest_budget = 0;
    s->calm_wanted = s->wanted;
    s->calm_done = s->done;
  }
  run_guest (s);
  run_line (s);
}

/* How long the pause would be that began now. */
static double
pause_ms (const struct sim *s)
{
  const struct sim_options *o = s->o;

  return (double)(s->nr_dirty * SIM_BLOCK) / o->bandwidth * 1000 + o->flush_ms + o->rtt_ms;
}

/* The running pass ends, the destination is flushed, the gate is held, what is left is copied and
 * flushed.  Where the guest has just written too much for that, another pass comes first. */
static void
hand_over (struct sim *s)
{
  const struct sim_options *o = s->o;
  double end = s->now + SETTLE_MS;

  do {
    for (unsigned wraps = s->wraps; s->nr_dirty > 0 && s->wraps == wraps && s->now < end;)
      step (s);
    for (double flushed = s->now + o->flush_ms; s->now < flushed;)
      step (s);
  } while (pause_ms (s) > o->max_downtime_ms && s->now < end);
  s->result.pause_ms = pause_ms (s);
  s->acked += s->nr_dirty * SIM_BLOCK;
  s->result.ended = true;
}

struct sim_result
sim_run (const struct sim_options *o)
{
  struct sim *s = calloc (1, sizeof *s);
  struct sim_result r = { .ended = false };

  if (s == NULL)
    return r;
  s->o = o;
  s->nr_blocks = s->nr_dirty = o->disk_bytes / SIM_BLOCK;
  s->dirty = malloc (s->nr_blocks);
  s->history = calloc (s->nr_blocks, 1);
  if (s->dirty == NULL || s->history == NULL)
    goto out;
  memset (s->dirty, 1, s->nr_blocks);
  guest_init (&s->guest, o);
  estimate_init (&s->estimate);
  converge_init (&s->converge);
  s->counting = true;
  s->waiting = -1;
  s->result.first_slowed_s = -1;
  estimate_begin (&s->estimate, (struct estimate_sample){ .left_bytes = o->disk_bytes });

  double last_ms = 0;
  while (s->now < o->give_up_s * 1000 && !s->result.ended && !s->converge.give_up) {
    step (s);
    uint64_t next_ns = estimate_next_ns (&s->estimate, !s->estimate.ready, s->nr_dirty * SIM_BLOCK,
                                         o->max_downtime_ms);
    if (s->now - last_ms < (double)next_ns / NS_PER_MS)
      continue;
    double since_ms = s->now - last_ms;
    last_ms = s->now;
    sample (s, false);
    if (s->estimate.ready && s->result.ready_s == 0)
      s->result.ready_s = s->now / 1000;
    if (!s->estimate.ready && s->result.ready_s > 0)
      s->result.unready_s += since_ms / 1000.0;
    if (s->estimate.ready && s->now >= o->stay_s * 1000)
      hand_over (s);
  }
  r = s->result;
  r.gave_up = s->converge.give_up;
  r.said_no = s->converge.verdict == CONVERGING_NO;
  r.traffic = (double)s->acked / (double)o->disk_bytes;
  r.passes = s->nr_passes;
  r.gate = s->gate;
  r.kept = s->wanted > 0 ? s->done / s->wanted : 1;
  r.calm_kept
      = s->wanted > s->calm_wanted ? (s->done - s->calm_done) / (s->wanted - s->calm_wanted) : 1;
out:
  free (s->dirty);
  free (s->history);
  free (s);
  return r;
}
