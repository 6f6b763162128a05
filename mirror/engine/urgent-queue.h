/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The worker's books of urgent requests (urgent.h): guest writes and flushes that wait for the
 * destination.
 *
 *   state    what it waits for                                        next
 *   posted   the worker takes it from the shared region               writing, or flushing
 *   writing  none of its blocks is dirty or busy any more             flushing, or answered
 *   flushing a destination flush that was sent after that has ended   answered
 *
 * The engine decides which of the blocks are copied when.  They are claimed like any others (R4,
 * R6), and it does not matter who copies them: this queue only looks at the bits and the busy
 * ranges.  While the job has not caught up, urgent blocks get only a share of the bytes: background
 * copying earns credit, and urgent copying spends it.
 *
 * A request that would wait for nothing is answered at once:
 *
 * - Some of its blocks are in quarantine: it is late.
 * - The first pass is going to copy all of its blocks: the job is not synchronised before that.
 * - It wants a flush while the job is not synchronised: the flush would make nothing safe.
 * - It wants a flush while a flush of the destination hangs: it is late.  So only the first one
 *   waits in vain, and not each.
 *
 * This is plain logic on the region and the pass.  The caller has the engine's lock.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_URGENT_QUEUE_H
#define NBDMIRROR_MIRROR_ENGINE_URGENT_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

#include "dirty-bitmap/urgent.h"
#include "mirror/engine/pass.h"

#define URGENT_SHARE 3 /* one urgent byte for each three of the background */
#define URGENT_CREDIT_BYTES (256 * 1024)

struct urgent_item {
  unsigned slot;
  bool writing;               /* some block was dirty or busy when last looked at */
  bool flush;                 /* wants a flush after that */
  uint64_t flush_nr;          /* not writing: the flush that will do */
  uint64_t first, count, pos; /* blocks; below pos they were handed out or clean */
};

struct urgent_queue {
  struct urgent_item items[URGENT_SLOTS]; /* in the order of arrival */
  unsigned nr;
  int64_t credit; /* bytes; below zero: the last one was larger than what was left */
};

/* The state of the job when requests are looked at. */
struct urgent_view {
  const struct pass *pass;
  bool synchronised;
  bool first_pass;     /* the cursor has not come to the disk's end yet: what is ahead of it will be
                          copied before anybody says that the job is synchronised */
  bool flush_hangs;    /* a flush has been running for longer than a guest's flush may wait */
  uint64_t next_flush; /* number of the next flush that will be sent */
};

/* Take what was posted.  Some are answered at once.  Returns true if any waits for the next flush.
 */
bool urgent_queue_gather (struct urgent_queue *q, struct region *r, const struct urgent_view *v);

/* The next run to copy, of at most MAX blocks: dirty and not busy.  False if there is none.  The
 * caller claims it at once, and then calls urgent_queue_handed_out(). */
bool urgent_queue_next (struct urgent_queue *q, struct region *r, const struct pass *p,
                        uint64_t max, uint64_t *first, uint64_t *count);
void urgent_queue_handed_out (struct urgent_queue *q, uint64_t first, uint64_t count);

/* The range is no longer busy.  Answers the requests that have waited for it.  Returns true if any
 * of them waits for the next flush now. */
bool urgent_queue_settle (struct urgent_queue *q, struct region *r, const struct urgent_view *v,
                          uint64_t first, uint64_t count);

/* Flush number NR has ended, and all before it. */
void urgent_queue_flushed (struct urgent_queue *q, struct region *r, uint64_t nr);

/* Answer all requests, posted or taken, with "late". */
void urgent_queue_refuse (struct urgent_queue *q, struct region *r);

/* BYTES of the background, or of urgent blocks, are going to be copied. */
void urgent_queue_earn (struct urgent_queue *q, uint64_t bytes);
void urgent_queue_spend (struct urgent_queue *q, uint64_t bytes);

#endif
