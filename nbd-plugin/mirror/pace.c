/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The pace.  See pace.h for its modes, for why a hang costs one delay in all, and for why the
 * region cannot go away under a waiter.
 */

#include "config.h"

#include <errno.h>

#include "base/clock.h"
#include "base/fd.h"
#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/urgent.h"
#include "nbd-plugin/mirror/pace.h"

#define LOOKS 8                    /* at `progress` in one max-delay */
#define SHORT_NS (200 * NS_PER_US) /* debt that is not worth a sleep; it stays in the bucket */
#define MOOT_NS (1 * NS_PER_S)     /* no progress for that long: do not throttle */
#define LEAVE_POLL_MS 1            /* how often pace_end wakes who is still there */

static enum pace_mode
mode_of (const struct pace *p)
{
  return (enum pace_mode)atomic_load (&p->mode);
}

static int64_t
earlier (int64_t a, int64_t b)
{
  return a < b ? a : b;
}

void
pace_init (struct pace *p)
{
  pthread_condattr_t attr;

  atomic_init (&p->mode, PACE_OPEN);
  atomic_init (&p->moot, false);
  atomic_init (&p->users, 0);
  p->region = NULL;
  p->wake_fd = -1;
  atomic_init (&p->max_delay_ns, PACE_DEFAULT_DELAY_NS);
  atomic_init (&p->quiet_progress, 0);
  atomic_init (&p->quiet_since, 0);
  atomic_init (&p->delayed, 0);
  atomic_init (&p->missed, 0);
  atomic_init (&p->longest_ns, 0);
  atomic_init (&p->epoch, 0);
  p->bucket = (struct pace_bucket){ .limit = 0 };
  p->watched = 0;
  p->watched_ns = 0;
  pthread_mutex_init (&p->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&p->changed, &attr);
  pthread_condattr_destroy (&attr);
}

void
pace_destroy (struct pace *p)
{
  pthread_cond_destroy (&p->changed);
  pthread_mutex_destroy (&p->lock);
}

/* ---- the control thread ---- */

/* Called with the lock.  Whoever is synchronous from now on gets an epoch of its own: it is ours
 * before the mode is (an old synced_epoch must not count), and the worker's after it, so that a
 * worker which catches up from there on begins when every later write already waits. */
static void
change_mode (struct pace *p, enum pace_mode mode)
{
  if (mode == PACE_SYNCHRONOUS)
    atomic_fetch_add (&p->epoch, 1);
  atomic_store (&p->quiet_since, 0);
  atomic_store (&p->moot, false);
  atomic_store (&p->mode, mode);
  if (mode == PACE_SYNCHRONOUS)
    atomic_store (&p->region->hdr->sync_epoch, atomic_load (&p->epoch));
  pthread_cond_broadcast (&p->changed);
}

void
pace_set (struct pace *p, struct region *r, enum pace_mode mode, uint64_t limit,
          int64_t max_delay_ns)
{
  if (p->region != r) {
    pace_end (p);
    p->region = r;
  }
  pthread_mutex_lock (&p->lock);
  enum pace_mode before = mode_of (p);
  atomic_store (&p->max_delay_ns, max_delay_ns);
  if (mode == PACE_THROTTLED)
    p->bucket.limit = limit;
  if (mode != before) {
    p->bucket.paid_ns = (int64_t)clock_ns ();
    p->watched_ns = 0;
    change_mode (p, mode);
  }
  pthread_mutex_unlock (&p->lock);
  if (before == PACE_SYNCHRONOUS && mode != before)
    urgent_wake_all (r); /* who misses it looks again within max-delay / LOOKS, or GATE_SLICE_NS */
}

void
pace_end (struct pace *p)
{
  pthread_mutex_lock (&p->lock);
  if (mode_of (p) != PACE_OPEN)
    change_mode (p, PACE_OPEN);
  pthread_mutex_unlock (&p->lock);
  while (atomic_load (&p->users) != 0) {
    if (p->region != NULL)
      urgent_wake_all (p->region);
    clock_sleep_ms (LEAVE_POLL_MS);
  }
  p->region = NULL;
}

void
pace_tick (struct pace *p, int64_t now)
{
  if (mode_of (p) != PACE_THROTTLED)
    return;
  uint64_t progress = atomic_load (&p->region->hdr->progress);
  if (p->watched_ns == 0 || progress != p->watched || bitmap_count (p->region, REGION_DIRTY) == 0) {
    p->watched = progress;
    p->watched_ns = now;
  }
  bool moot = now - p->watched_ns >= MOOT_NS;
  if (moot == atomic_load (&p->moot))
    return;
  pthread_mutex_lock (&p->lock);
  atomic_store (&p->moot, moot);
  pthread_cond_broadcast (&p->changed);
  pthread_mutex_unlock (&p->lock);
}

static bool
synchronised (const struct pace *p)
{
  return mode_of (p) == PACE_SYNCHRONOUS
         && atomic_load (&p->region->hdr->synced_epoch) == atomic_load (&p->epoch);
}

void
pace_look (struct pace *p, struct pace_view *view)
{
  view->mode = mode_of (p);
  view->epoch = atomic_load (&p->epoch);
  view->synchronised = synchronised (p);
  pthread_mutex_lock (&p->lock);
  view->limit = view->mode == PACE_THROTTLED ? p->bucket.limit : 0;
  pthread_mutex_unlock (&p->lock);
  view->max_delay_ns = atomic_load (&p->max_delay_ns);
  view->delayed = atomic_load (&p->delayed);
  view->missed = atomic_load (&p->missed);
  view->longest_ns = atomic_load (&p->longest_ns);
}

void
pace_reset_counters (struct pace *p)
{
  atomic_store (&p->delayed, 0);
  atomic_store (&p->missed, 0);
  atomic_store (&p->longest_ns, 0);
}

/* ---- guest threads ---- */

static void
count_delay (struct pace *p, int64_t ns)
{
  int64_t longest = atomic_load (&p->longest_ns);

  atomic_fetch_add (&p->delayed, 1);
  while (ns > longest && !atomic_compare_exchange_weak (&p->longest_ns, &longest, ns))
    ;
}

/* The epochs go up in one order in both places, hence the lock; and before the guest has its
 * answer. */
static void
miss (struct pace *p)
{
  atomic_fetch_add (&p->missed, 1);
  pthread_mutex_lock (&p->lock);
  bool lost = synchronised (p);
  atomic_store (&p->region->hdr->sync_epoch, atomic_fetch_add (&p->epoch, 1) + 1);
  pthread_mutex_unlock (&p->lock);
  if (lost && p->wake_fd != -1)
    fd_wake (p->wake_fd);
}

int64_t
pace_bucket_take (struct pace_bucket *b, uint64_t bytes, int64_t now, int64_t max_delay_ns)
{
  double cost = (double)bytes * 1e9 / (double)b->limit,
         most = (double)(PACE_BURST_NS + max_delay_ns);

  if (b->paid_ns < now - PACE_BURST_NS)
    b->paid_ns = now - PACE_BURST_NS;
  b->paid_ns += (int64_t)(cost < most ? cost : most);
  b->paid_ns = earlier (b->paid_ns, now + max_delay_ns);
  return b->paid_ns;
}

static void
throttle (struct pace *p, uint64_t bytes, gate_probe *probe, void *opaque)
{
  int64_t begin = (int64_t)clock_ns ();

  pthread_mutex_lock (&p->lock);
  if (mode_of (p) == PACE_THROTTLED && !atomic_load (&p->moot)) {
    int64_t until = pace_bucket_take (&p->bucket, bytes, begin, atomic_load (&p->max_delay_ns));
    int64_t now = begin;
    bool waits = until > begin + SHORT_NS;

    while (until > now + SHORT_NS && mode_of (p) == PACE_THROTTLED && !atomic_load (&p->moot)) {
      int64_t ns = earlier (until, now + GATE_SLICE_NS);
      struct timespec ts = clock_timespec ((uint64_t)ns);

      if (pthread_cond_timedwait (&p->changed, &p->lock, &ts) == ETIMEDOUT && ns < until) {
        pthread_mutex_unlock (&p->lock);
        int err = probe (opaque);
        pthread_mutex_lock (&p->lock);
        if (err != 0)
          break;
      }
      now = (int64_t)clock_ns ();
    }
    if (waits)
      count_delay (p, (int64_t)clock_ns () - begin);
  }
  pthread_mutex_unlock (&p->lock);
}

/* Since when has progress stood at PROGRESS, as far as others know?  A worker that has caught up is
 * there, whether it had anything to do or not. */
static int64_t
quiet_since (const struct pace *p, uint64_t progress, int64_t otherwise)
{
  int64_t since = atomic_load (&p->quiet_since);

  if (since == 0 || atomic_load (&p->quiet_progress) != progress || synchronised (p))
    return otherwise;
  return earlier (since, otherwise);
}

static void
leave_quiet (struct pace *p, uint64_t progress, int64_t since)
{
  /* Others know it already, and would wait in the instant in which it is taken back. */
  if (atomic_load (&p->quiet_since) != 0 && atomic_load (&p->quiet_progress) == progress)
    return;
  atomic_store (&p->quiet_since, 0);
  atomic_store (&p->quiet_progress, progress);
  atomic_store (&p->quiet_since, since);
}

/* Wait for the answer in SLOT.  True if it is "done", or if nobody asks for it any more. */
static bool
wait_for_answer (struct pace *p, int slot, int64_t begin, gate_probe *probe, void *opaque)
{
  struct region *r = p->region;
  int64_t max_delay = atomic_load (&p->max_delay_ns), probed = begin, now = begin;
  int64_t slice = earlier (max_delay / LOOKS, GATE_SLICE_NS);
  uint64_t progress = atomic_load (&r->hdr->progress);
  int64_t since = quiet_since (p, progress, begin); /* when progress was seen to begin to stand */

  for (;;) {
    int64_t until = earlier (begin, since) + max_delay;
    enum urgent_answer answer = urgent_wait (r, slot, earlier (until, now + slice));

    if (answer != URGENT_ANSWER_NONE) {
      if (answer == URGENT_ANSWER_OK && atomic_load (&p->quiet_since) != 0)
        atomic_store (&p->quiet_since, 0);
      return answer == URGENT_ANSWER_OK;
    }
    if (mode_of (p) != PACE_SYNCHRONOUS)
      return true;
    now = (int64_t)clock_ns ();
    uint64_t seen = atomic_load (&r->hdr->progress);
    if (seen != progress)
      since = now;
    progress = seen;
    since = quiet_since (p, progress, since);
    if (now >= earlier (begin, since) + max_delay) {
      leave_quiet (p, progress, since);
      return false;
    }
    if (now - probed >= GATE_SLICE_NS) {
      probed = now;
      if (probe (opaque) != 0)
        return false;
    }
  }
}

/* The blocks of a range of bytes, cut at the end of the disk. */
static void
blocks_of (const struct region_geometry *geo, uint64_t offset, uint64_t length, uint64_t *first,
           uint64_t *count)
{
  *first = *count = 0;
  if (length == 0 || offset >= geo->disk_size)
    return;
  uint64_t end = length < geo->disk_size - offset ? offset + length : geo->disk_size;
  *first = offset >> geo->block_shift;
  *count = ((end - 1) >> geo->block_shift) + 1 - *first;
}

static void
synchronise (struct pace *p, uint32_t kind, uint64_t offset, uint64_t length, gate_probe *probe,
             void *opaque)
{
  struct region *r = p->region;
  int64_t begin = (int64_t)clock_ns ();
  uint64_t first, count;

  blocks_of (&r->geo, offset, length, &first, &count);
  /* Nothing moves: do not even ask.  The blocks are dirty, so it is the worker's to move again. */
  int64_t since = quiet_since (p, atomic_load (&r->hdr->progress), begin);
  int slot = -1;
  if (begin < since + atomic_load (&p->max_delay_ns))
    slot = urgent_post (r, kind, first, count);
  bool ok = false;
  if (slot != -1) {
    ok = wait_for_answer (p, slot, begin, probe, opaque);
    urgent_drop (r, slot);
    count_delay (p, (int64_t)clock_ns () - begin);
  }
  if (!ok)
    miss (p);
}

void
pace_wait (struct pace *p, uint32_t kind, uint64_t offset, uint64_t length, uint64_t dirtied,
           gate_probe *probe, void *opaque)
{
  uint64_t bytes = 0;

  atomic_fetch_add (&p->users, 1);
  switch (mode_of (p)) { /* only now: see pace.h */
  case PACE_OPEN:
    break;
  case PACE_SYNCHRONOUS:
    synchronise (p, kind, offset, length, probe, opaque);
    break;
  case PACE_THROTTLED:
    bytes = dirtied << p->region->geo.block_shift;
    break;
  }
  atomic_fetch_sub (&p->users, 1);
  if (bytes != 0)
    throttle (p, bytes, probe, opaque);
}
