/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The worker's books of urgent requests (urgent.h): guest writes and flushes that wait for the
 * destination.
 *
 *   posted --take--> write part: until no block of it is dirty or busy
 *                    flush part: until a destination flush that was sent after that has ended
 *                    -> answered
 *
 * Which of their blocks are copied when is the engine's to decide; they are claimed like any others
 * (R4, R6), and whoever copies them, this queue only looks at the bits and the busy ranges.  While
 * the job has not caught up, urgent blocks get a share of the bytes only: background copying earns
 * credit, urgent copying spends it.
 *
 * Requests that would wait for nothing are answered at once: blocks in quarantine (late), and,
 * while the first pass has not come to them, blocks that it is going to copy anyway: the job is not
 * synchronised before it has.  A flush is not waited for either while the job is not synchronised:
 * it would make nothing safe.  And while a flush of the destination hangs, another one is late from
 * the start: only the first waits in vain, not each.
 *
 * Plain logic on the region and the pass; the caller has the engine's lock.
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

/* How the job stands when requests are looked at. */
struct urgent_view {
  const struct pass *pass;
  bool synchronised;
  bool first_pass;  /* the cursor has not come to the end yet: what is ahead of it is still going to
                     * be copied before  anybody says that the job is synchronised */
  bool flush_hangs; /* a flush has been running for longer than a guest's flush may wait */
  uint64_t next_flush; /* number of the next flush that will be sent */
};

/* Take what was posted.  Some are answered at once.  Returns true if any waits for the next flush.
 */
bool urgent_queue_gather (struct urgent_queue *q, struct region *r, const struct urgent_view *v);

/* The next run to copy, of at most MAX blocks: dirty and not busy.  False if there is none.  The
 * caller claims it at once, and then says so to urgent_queue_handed_out(). */
bool urgent_queue_next (struct urgent_queue *q, struct region *r, const struct pass *p,
                        uint64_t max, uint64_t *first, uint64_t *count);
void urgent_queue_handed_out (struct urgent_queue *q, uint64_t first, uint64_t count);

/* The range is no longer busy.  Answers what has waited for it.  Returns true if any waits for the
 * next flush now. */
bool urgent_queue_settle (struct urgent_queue *q, struct region *r, const struct urgent_view *v,
                          uint64_t first, uint64_t count);

/* Flush number NR has ended, and all before it. */
void urgent_queue_flushed (struct urgent_queue *q, struct region *r, uint64_t nr);

/* Answer everything, posted or taken: late. */
void urgent_queue_refuse (struct urgent_queue *q, struct region *r);

/* BYTES of the background, or of urgent blocks, are going to be copied. */
void urgent_queue_earn (struct urgent_queue *q, uint64_t bytes);
void urgent_queue_spend (struct urgent_queue *q, uint64_t bytes);

#endif
