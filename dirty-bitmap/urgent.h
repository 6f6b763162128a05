/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Urgent slots: how guest writes of the synchronous gate tell the worker that they wait, and how it
 * tells them that they need wait no longer.  A table in the shared region, one slot for each
 * waiting request.
 *
 *   FREE -> FILLING -> POSTED ------------> TAKEN ------------> DONE or LATE -> FREE
 *    ^      (filter)      |      (worker)     |      (worker)                (filter)
 *    |                    | filter gives up   | filter gives up
 *    +--------------------+                   +--> ABANDONED --> FREE (worker)
 *
 * Every arrow out of POSTED and TAKEN is a compare-and-swap, since either side may be first.  A
 * slot that was taken and given up belongs to the worker until it answers: so no answer ever
 * reaches a request that it was not meant for.
 *
 * What an answer of "done" says (the filter posts after the guest's bytes were written locally and
 * marked dirty):
 *   URGENT_WRITE  since the slot was taken, each of the blocks has been seen neither dirty nor
 *                 under copy (each at some instant, and dirty was looked at first).  So everything
 *                 that the guest wrote there before was written to the destination and
 *                 acknowledged.
 *   URGENT_FLUSH  a flush of the destination that began after the slot was taken, and after its
 *                 URGENT_WRITE part was done, has succeeded.
 * Before synced_epoch is sync_epoch the worker may say "done" of what it will only copy later, and
 * of a flush: nobody may rely on the destination before (mirror/engine/urgent-queue.h says when).
 * "Late" says that it will not be done in time (the destination is lost, or a block is in
 * quarantine), and the guest goes on.
 *
 * Also in the region's header, for the same gate:
 *   progress      the worker counts up at each acknowledged write or flush at the destination, and
 *                 several times a second while it waits only for its own bandwidth limit.  Where it
 *                 stands still nobody is going to be answered.
 *   sync_epoch    the filter counts up when the gate becomes synchronous, and at each write that
 *                 went on without having been answered.
 *   synced_epoch  the worker reads a sync_epoch E, and stores it here once the destination has
 *                 everything that was dirty or under copy at some moment after the reading.  While
 *                 sync_epoch is still E, the destination lacks nothing but the writes that wait.
 *
 * The worker may be dead, stopped or hostile: the filter uses no index but its own slot number,
 * each of its waits ends at its own deadline, and no value in the table makes it loop.  A worker
 * that is given nonsense (a range behind the disk's end) answers late by itself.
 *
 * All calls are safe between threads and processes.  R must stay mapped during a call.
 */

#ifndef NBDMIRROR_DIRTY_BITMAP_URGENT_H
#define NBDMIRROR_DIRTY_BITMAP_URGENT_H

#include "dirty-bitmap/region.h"

#define URGENT_SLOTS (64u * REGION_URGENT_WORDS)

#define URGENT_WRITE 1u
#define URGENT_FLUSH 2u

enum urgent_state {
  URGENT_FREE, /* zero: a fresh region needs no clearing */
  URGENT_FILLING,
  URGENT_POSTED,
  URGENT_TAKEN,
  URGENT_DONE,
  URGENT_LATE,
  URGENT_ABANDONED
};

/* As it stands in shared memory: one cache line. */
struct urgent_slot {
  _Alignas(64) _Atomic uint32_t state; /* enum urgent_state; the futex the filter waits on */
  _Atomic uint32_t kind;
  _Atomic uint64_t first, count; /* blocks; both 0 without URGENT_WRITE */
};

#define URGENT_TABLE_BYTES (URGENT_SLOTS * sizeof (struct urgent_slot))

/* ---- the filter ---- */

/* Ask for KIND, and for the blocks [FIRST, FIRST + COUNT) if it has URGENT_WRITE; rings the worker.
 * Returns the slot, to be given to urgent_drop(), or -1 if none is free. */
int urgent_post (struct region *r, uint32_t kind, uint64_t first, uint64_t count);

enum urgent_answer {
  URGENT_ANSWER_NONE, /* time is up, or urgent_wake_all(), a signal or nothing at all woke us */
  URGENT_ANSWER_OK,
  URGENT_ANSWER_LATE
};

/* Sleep until SLOT is answered, or until UNTIL_NS (CLOCK_MONOTONIC).  The answer wins where both
 * are true. The caller is the thread that posted it. */
enum urgent_answer urgent_wait (struct region *r, int slot, int64_t until_ns);

/* Done with SLOT, answered or not. */
void urgent_drop (struct region *r, int slot);

/* Let every waiter of urgent_wait() look around once.  One that was just about to sleep may miss
 * it: repeat it until they are gone where that matters. */
void urgent_wake_all (struct region *r);

/* ---- the worker ---- */

struct urgent_request {
  unsigned slot;
  uint32_t kind;
  uint64_t first, count; /* checked against the geometry */
};

/* Is something posted?  A hint: two cache lines, no write.  A request that was posted before the
 * call is seen; one that was given up since may be. */
bool urgent_any (const struct region *r);

/* Take a request, about in the order of their arrival.  False if there is none. */
bool urgent_take (struct region *r, struct urgent_request *q);

/* Answer a request that was taken (once), and wake its waiter.  OK false: late. */
void urgent_answer (struct region *r, unsigned slot, bool ok);

/* Has the filter given up this taken request?  It is still to be answered, which frees the slot. */
bool urgent_abandoned (const struct region *r, unsigned slot);

/* The bell: read it, look for work (urgent_any), then sleep unless it has rung since it was read.
 * Returns after at most TIMEOUT_NS; also without a reason. */
uint32_t urgent_bell (const struct region *r);
void urgent_sleep (struct region *r, uint32_t seen, int64_t timeout_ns);

/* Ring it; urgent_post() does.  A worker may, to wake its own sleeping thread. */
void urgent_ring (struct region *r);

#endif
