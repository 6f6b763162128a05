/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the source could not be read at.  Storage that fails may come back, so nothing is given up
 * here: what failed stays dirty and is read again later.
 *
 * A request covers many blocks, and one bad block fails it.  So a run that failed is read again at
 * once, one block at a time, which tells the bad blocks from the good ones.  A single block that
 * fails is left alone for 0.5 s, doubled at each failure up to 30 s, while the rest of the disk is
 * copied.  When a whole series of reads fails the source as a whole is left alone in the same way.
 *
 * Plain values in, plain values out: there is no clock and no I/O.  The caller has a lock.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_UNREADABLE_H
#define NBDMIRROR_MIRROR_ENGINE_UNREADABLE_H

#include <stdbool.h>
#include <stdint.h>

#define UNREADABLE_MAX 64    /* runs that are remembered; others are read like any dirty block */
#define UNREADABLE_SERIES 32 /* so many failures running: it is the source as a whole */

/* The time to the next attempt. */
struct unreadable_back_off {
  uint64_t ns, retry_ns;
};

struct unreadable_run {
  uint64_t first, count;        /* blocks; more than one: to be read one by one */
  struct unreadable_back_off w; /* of a single block */
  int err;                      /* errno of the last attempt */
};

struct unreadable {
  struct unreadable_run runs[UNREADABLE_MAX];
  unsigned nr;
  unsigned series;                   /* failures since a read succeeded */
  struct unreadable_back_off source; /* of the source as a whole */
  uint64_t since_ns; /* since when something has been unreadable without a break; 0: nothing is */
};

/* Reading COUNT blocks from FIRST on failed with errno ERR. */
void unreadable_failed (struct unreadable *u, uint64_t first, uint64_t count, int err,
                        uint64_t now_ns);

/* These blocks were read and copied, or are zero and need not be read. */
void unreadable_copied (struct unreadable *u, uint64_t first, uint64_t count);

/* Is the source as a whole left alone at NOW_NS? */
bool unreadable_suspended (const struct unreadable *u, uint64_t now_ns);

/* How many single blocks are left alone at NOW_NS.  If there are any, *UNTIL_NS is when the first
 * of them may be read again. */
uint64_t unreadable_left_alone (const struct unreadable *u, uint64_t now_ns, uint64_t *until_ns);

/* May the run of *COUNT blocks at *FIRST be read at NOW_NS?  If so *COUNT is cut to what may be
 * read in one request.  If not *FIRST moves behind the blocks that are left alone. */
bool unreadable_may_read (const struct unreadable *u, uint64_t now_ns, uint64_t *first,
                          uint64_t *count);

#endif
