/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The pace: what a guest's mutation waits for after it was done locally, marked, and counted out of
 * the gate.  It slows a guest that dirties blocks faster than they can be copied.  It knows nothing
 * of nbdkit, so that it is tested alone; the way to notice a shutdown is a callback.
 *
 *   open         nothing.  One load.
 *   throttled    a token bucket for bytes that turned from clean to dirty; rewriting what is dirty
 *                is free.
 *   synchronous  until the worker has written the blocks to the destination (urgent.h); a FLUSH,
 *                and the flush in FUA, until it has flushed there.
 *
 * No single wait is longer than max-delay.  Past it the guest goes on, since its write is safe here
 * and its blocks are dirty: they are copied later.  In synchronous mode that is a *miss*: the disk
 * is no longer synchronised until the worker has caught up (epochs, urgent.h).
 *
 * Waiters are not in flight (R3): a hold's drain does not wait for them.  They hold no lock and
 * nobody waits for them but pace_end().
 *
 * One delay in all.  A destination or a worker that is dead, stopped or hung must not cost each
 * write its max-delay.  The worker counts up `progress` whenever anything moves.  A waiter looks at
 * it several times in its wait, and so knows since when it has stood still.  When that is
 * max-delay, it goes on and leaves behind what it knows (quiet_progress, quiet_since): all other
 * waiters see it at their next look and go on too, and no later mutation waits (each is a miss)
 * while progress is still the same and the worker has not caught up by other means.  So however
 * many threads write, what a hang costs them is max-delay and one look, from the hang on.  A
 * throttled guest is no longer throttled when there is something to copy and progress has stood
 * still for a second.
 *
 * The region's lifetime.  The region is unmapped by the control thread, at a hand-off, when a job
 * is dropped or when a new worker attaches, while guest threads may be asleep on a word in it.
 *
 *   guest thread:    users + 1;  mode?  if not open: use the region;  users - 1
 *   control thread:  mode = open;  until users is 0: wake them all;  only then drop the region
 *
 * All four are sequentially consistent, and each side writes before it reads.  So either the
 * guest thread sees "open", then it never touches the region; or the control thread sees it
 * counted, then it waits for it.  There is no third case: both having missed each other would need
 * each read to come before the other's write, in one total order that has each write before its own
 * read. Whoever was counted leaves soon.  A thread that runs looks at the mode before each sleep. A
 * sleeping one is woken, again every millisecond, because a wake-up between its look at the mode
 * and its sleep is lost.  A probe takes no longer than nbdkit needs for it (it polls without
 * waiting). The pointer is written only while the mode is open and users is 0.  It is read only by
 * a thread that was counted and then saw another mode, hence after the store that published it. The
 * first look at the mode, before counting, only saves the counting while the mode is open.
 *
 * Threads: guest threads call pace_after() and pace_wait(); all else is the control thread's.
 * Lock: `lock` is a leaf.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_PACE_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_PACE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/clock.h"
#include "dirty-bitmap/region.h"
#include "nbd-plugin/mirror/gate.h"

enum pace_mode { PACE_OPEN, PACE_THROTTLED, PACE_SYNCHRONOUS };

#define PACE_DEFAULT_DELAY_NS (50 * NS_PER_MS)
#define PACE_MAX_DELAY_NS (60 * NS_PER_S)

/* The token bucket, a virtual schedule: a time up to which everything dirtied so far is paid for.
 * Plain values, no clock. */
struct pace_bucket {
  uint64_t limit;  /* bytes a second, > 0 */
  int64_t paid_ns; /* may lie in the past: then that much, cut to PACE_BURST_NS, is saved up */
};

#define PACE_BURST_NS (100 * NS_PER_MS)

/* BYTES were dirtied at NOW.  Returns when the schedule would let the writer go on (NOW or before:
 * at once), never later than NOW + MAX_DELAY_NS: debt beyond that is forgiven. */
int64_t pace_bucket_take (struct pace_bucket *b, uint64_t bytes, int64_t now, int64_t max_delay_ns);

struct pace {
  _Atomic uint32_t mode; /* enum pace_mode */
  _Atomic bool moot;     /* throttling is of no use now */
  int wake_fd; /* borrowed, or -1: the control thread should look, synchronised was lost */
  _Alignas(64) _Atomic uint32_t users; /* guest threads that may use the region */
  struct region *region;               /* borrowed; see above */
  _Atomic int64_t max_delay_ns;

  /* What the last waiter that gave up has seen.  Two words that are not read together: at worst
   * one mutation waits shorter or longer than it might, and never beyond max_delay_ns. */
  _Atomic uint64_t quiet_progress;
  _Atomic int64_t quiet_since; /* 0: nothing */

  _Atomic uint64_t delayed, missed;
  _Atomic int64_t longest_ns;

  pthread_mutex_t lock;
  pthread_cond_t changed;    /* the mode changed */
  struct pace_bucket bucket; /* under lock */
  _Atomic uint64_t epoch;    /* written under lock, published in the region's sync_epoch */

  uint64_t watched;   /* control thread: progress when it was last seen to move, */
  int64_t watched_ns; /* and when */
};

/* For the status. */
struct pace_view {
  enum pace_mode mode;
  bool synchronised; /* the destination has everything that the guest was told is done */
  uint64_t epoch;    /* changes whenever synchronised became false */
  uint64_t limit;    /* bytes a second; 0 unless throttled */
  int64_t max_delay_ns;
  uint64_t delayed;   /* mutations and flushes that had to wait */
  uint64_t missed;    /* that went on without an answer, synchronous mode only */
  int64_t longest_ns; /* the longest wait */
};

void pace_init (struct pace *p);
void pace_destroy (struct pace *p);

/* Take MODE for the job of region R (borrowed until pace_end); LIMIT in bytes a second, > 0 if
 * throttled; 0 < MAX_DELAY_NS <= PACE_MAX_DELAY_NS.  Whoever waits for what is no longer asked goes
 * on soon.  Returns at once unless R is another region than before. */
void pace_set (struct pace *p, struct region *r, enum pace_mode mode, uint64_t limit,
               int64_t max_delay_ns);

/* The mode is open, and no guest thread uses the region any more when it returns. */
void pace_end (struct pace *p);

/* Time has passed: is throttling still of use?  At least a few times a second. */
void pace_tick (struct pace *p, int64_t now);

void pace_look (struct pace *p, struct pace_view *view);

/* A new job: its counters begin at 0. */
void pace_reset_counters (struct pace *p);

/* ---- guest threads ---- */

/* The slow half.  KIND as in urgent.h. */
void pace_wait (struct pace *p, uint32_t kind, uint64_t offset, uint64_t length, uint64_t dirtied,
                gate_probe *probe, void *opaque);

/* After a mutation of [OFFSET, OFFSET + LENGTH) bytes that turned DIRTIED blocks from clean to
 * dirty, and after gate_leave(); KIND is URGENT_WRITE, and URGENT_FLUSH with FUA.  Or after a
 * flush: URGENT_FLUSH, all 0. It never fails: what was done locally is done, whatever the pace
 * says. */
static inline void
pace_after (struct pace *p, uint32_t kind, uint64_t offset, uint64_t length, uint64_t dirtied,
            gate_probe *probe, void *opaque)
{
  if (__builtin_expect (atomic_load (&p->mode) != PACE_OPEN, 0))
    pace_wait (p, kind, offset, length, dirtied, probe, opaque);
}

#endif
