/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What a guest's write and its flush do.  See state.h.
 *
 * A write and the one who looks at an extent, each in its order, all sequentially consistent:
 *   write:   count itself into the extent; is it hot?  If not, count out, and wait
 *   looker:  (under lock) not hot; is nobody counted?  If somebody is, hot again, and try later
 * Either the write sees "not hot", or the looker sees the write.
 */

#include "config.h"

#include <errno.h>

#include "base/clock.h"
#include "dirty-bitmap/state/internal.h"

#define SLICE_MS 100         /* between two probes of a write that waits */
#define ANSWER_LIMIT_MS 5000 /* a state file that takes longer is lost */

struct extents {
  uint64_t first, last;
};

/* False where there is nothing to count: no job, or not a byte of the disk. */
static bool
extents_of (const struct state *s, uint64_t offset, uint64_t length, struct extents *x)
{
  const struct state_layout *l = &s->layout;

  if (length == 0 || offset >= l->geo.disk_size)
    return false;
  uint64_t end = length < l->geo.disk_size - offset ? offset + length : l->geo.disk_size;
  x->first = offset / l->extent_size;
  x->last = (end - 1) / l->extent_size;
  return true;
}

static void
count_out (struct state *s, const struct extents *x, uint64_t end)
{
  for (uint64_t e = x->first; e < end; e++)
    atomic_fetch_sub (&s->in_flight[e], 1);
}

/* Count into all extents.  False, and counted into none, if one is not hot. */
static bool
count_in (struct state *s, const struct extents *x)
{
  for (uint64_t e = x->first; e <= x->last; e++) {
    atomic_fetch_add (&s->in_flight[e], 1);
    if (!atomic_load (&s->hot[e])) {
      count_out (s, x, e + 1);
      return false;
    }
  }
  return true;
}

/* Mark the blocks before they are written (R2).  A bit that is seen set stays set: bits are cleared
 * only where nobody is counted, and we are. */
static void
mark_map (_Atomic uint64_t *live, const struct region_geometry *geo, uint64_t offset,
          uint64_t length)
{
  uint64_t end = length < geo->disk_size - offset ? offset + length : geo->disk_size;
  uint64_t first = offset >> geo->block_shift, last = (end - 1) >> geo->block_shift;

  for (uint64_t w = first / 64; w <= last / 64; w++) {
    uint64_t low = w == first / 64 ? first % 64 : 0, high = w == last / 64 ? last % 64 : 63;
    uint64_t mask = (~UINT64_C (0) << low) & (~UINT64_C (0) >> (63 - high));
    if ((atomic_load (&live[w]) & mask) != mask)
      atomic_fetch_or (&live[w], mask);
  }
}

/* Recordings first: a job that begins with what was recorded takes over each mark of a write that
 * did not see the job's own map. */
static void
mark_live (struct state *s, uint64_t offset, uint64_t length)
{
  for (unsigned i = 3; i-- > 0;) {
    _Atomic uint64_t *live = atomic_load (&s->marked[i]);
    if (live != NULL)
      mark_map (live, &s->layout.geo, offset, length);
  }
  state_lost_page (s);
}

/* Ask for the L1 bits of the extents that are cold.  True if none is.  Under lock. */
static bool
ask (struct state *s, const struct extents *x)
{
  uint64_t before = s->nr_pending;
  bool all_hot = true;

  for (uint64_t e = x->first; e <= x->last; e++) {
    if (atomic_load (&s->hot[e]))
      continue;
    if ((s->l1[e / 64] >> (e % 64) & 1) != 0 && !s->pending[e]) {
      atomic_store (&s->hot[e], 1); /* it was cooling: its bit is still on the disk */
      continue;
    }
    all_hot = false;
    state_ask (s, e);
  }
  if (s->nr_pending != before && s->nr_pending >= s->wake_at)
    pthread_cond_signal (&s->work);
  return all_hot;
}

/* A write enters, or its extents are asked for.  True also if it need not be counted: *COUNTED.
 * Under lock. */
static bool
enter_or_ask (struct state *s, const struct extents *x, bool *counted)
{
  *counted = atomic_load (&s->active) && ask (s, x) && count_in (s, x);
  return *counted || !atomic_load (&s->active);
}

bool
state_try_enter (struct state *s, uint64_t offset, uint64_t length, bool *counted)
{
  struct extents x;

  *counted = false;
  if (!atomic_load (&s->active) || !extents_of (s, offset, length, &x))
    return true;
  *counted = count_in (s, &x);
  bool in = *counted;
  if (!in) {
    pthread_mutex_lock (&s->lock);
    in = enter_or_ask (s, &x, counted);
    pthread_mutex_unlock (&s->lock);
  }
  if (*counted)
    mark_live (s, offset, length);
  return in;
}

/* Wait until the extents are hot, or the tracking is lost.  0, or what PROBE says. */
static int
wait_to_enter (struct state *s, const struct extents *x, state_probe *probe, void *opaque,
               bool *counted)
{
  uint64_t begun = clock_ms ();
  int err = 0;

  pthread_mutex_lock (&s->lock);
  s->waits++;
  while (!enter_or_ask (s, x, counted)) {
    struct timespec until = clock_timespec (clock_ns () + SLICE_MS * NS_PER_MS);
    if (pthread_cond_timedwait (&s->committed, &s->lock, &until) == 0)
      continue;
    pthread_mutex_unlock (&s->lock);
    err = probe (opaque);
    if (err != 0)
      return err;
    if (clock_ms () - begun >= ANSWER_LIMIT_MS)
      state_lose (s, "the state file did not answer in time");
    pthread_mutex_lock (&s->lock);
  }
  pthread_mutex_unlock (&s->lock);
  return 0;
}

int
state_enter (struct state *s, uint64_t offset, uint64_t length, state_probe *probe, void *opaque,
             bool *counted)
{
  struct extents x;

  *counted = false;
  if (!atomic_load (&s->active) || !extents_of (s, offset, length, &x))
    return 0;
  *counted = count_in (s, &x);
  int err = *counted ? 0 : wait_to_enter (s, &x, probe, opaque, counted);
  if (*counted)
    mark_live (s, offset, length);
  return err;
}

void
state_leave (struct state *s, uint64_t offset, uint64_t length)
{
  struct extents x;

  if (!extents_of (s, offset, length, &x))
    return;
  uint32_t tick = atomic_load (&s->tick);
  for (uint64_t e = x.first; e <= x.last; e++) {
    uint32_t old = atomic_load (&s->touched[e]);
    while (old < tick && !atomic_compare_exchange_weak (&s->touched[e], &old, tick))
      ;
  }
  count_out (s, &x, x.last + 1);
}

uint32_t
state_flush_begins (struct state *s)
{
  return atomic_load (&s->tick);
}

void
state_flush_ended (struct state *s, uint32_t begun)
{
  uint32_t flushed = atomic_load (&s->flushed);

  while (begun > flushed && !atomic_compare_exchange_weak (&s->flushed, &flushed, begun))
    ;
}
