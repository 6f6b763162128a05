/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The order of copying: which dirty run comes next.  A pass goes over the disk in ascending order.
 * What turns dirty behind the cursor waits for the next pass.  There is no I/O here and there are
 * no threads: the caller (task.c) has the engine's lock.
 *
 * Two things are looked up besides the bitmap:
 *
 * - Busy ranges: a block that is being copied is not copied a second time meanwhile (rule R6).
 *   Up to 1,284 requests are in flight, so a table is cheaper than a bit for each block.
 * - Hints: extents of the source, as its block status gave them.  They serve only to choose between
 *   reading a range and asking again once it is claimed (rule R8).  A stale hint costs time, never
 *   data.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_PASS_H
#define NBDMIRROR_MIRROR_ENGINE_PASS_H

#include <stdbool.h>
#include <stdint.h>

#include "dirty-bitmap/bitmap.h"
#include "mirror/endpoint/endpoint.h"
#include "mirror/engine/unreadable.h"

#define PASS_MAX_BUSY 2048
#define PASS_MAX_HINTS 1024

struct pass_range {
  uint64_t first, count; /* blocks */
  uint64_t number;       /* ranges that became busy later have higher ones */
};

struct pass {
  uint64_t cursor; /* the next block to look at */
  struct pass_range busy[PASS_MAX_BUSY];
  unsigned nr_busy;
  uint64_t last_number;
  struct unreadable unreadable; /* the source's; pass_next() leaves out what is left alone */

  /* hints[] covers bytes hint_start to hint_end. */
  uint64_t hint_start, hint_end;
  struct endpoint_extent hints[PASS_MAX_HINTS];
  unsigned nr_hints;
  bool hint_pending; /* a WORK_ASK is under way */
};

enum pass_kind {
  PASS_END,    /* nothing between the cursor and the end of the disk */
  PASS_DATA,   /* read and write this run, which max_gap lets have clean blocks in it */
  PASS_VERIFY, /* the same, and read it back: it is in quarantine (R12) */
  /* The source's hint says zero, or in a lower layer: claim, ask again, write zeroes. */
  PASS_ZERO,
  PASS_ASK,  /* a long run without a hint: ask for its block status */
  PASS_LONG, /* the next run is longer than the caller can take now, see longest */
  PASS_WAIT  /* the next dirty block is still busy (wait_number), or it is in quarantine and the
                caller cannot take it now (verify_full) */
};

struct pass_options {
  uint64_t now_ns;   /* for what is unreadable */
  uint64_t max_data; /* blocks in one data request, > 0 */
  uint64_t max_zero; /* blocks in one zero request */
  uint64_t max_ask;  /* blocks in one block status request */
  uint64_t min_ask;  /* shorter runs are just read; 0: never ask */
  /* A dirty block that is busy is left to the next pass, unless the number of its busy range is at
   * most this: then it is waited for. */
  uint64_t wait_number;
  /* The grace time is over, so blocks in quarantine may be copied.  Else they are skipped. */
  bool quarantine_ready;
  uint64_t longest; /* blocks that the caller has a buffer for now; 0: any number */
  uint64_t max_gap; /* so many clean blocks may be sent along between two dirty ones; 0: none */
  /* The caller has no room for PASS_VERIFY at this moment.  The pass waits in front of such a
   * block.  If it went past it, most of the quarantine would be left to later passes, and a busy
   * guest always has other blocks ready for those. */
  bool verify_full;
};

void pass_init (struct pass *p);

/* Go back to the first block and forget the hints. */
void pass_restart (struct pass *p);

/* What to do next, from the cursor on.  Does not move the cursor. */
enum pass_kind pass_next (const struct pass *p, const struct region *r,
                          const struct pass_options *o, uint64_t *first, uint64_t *count);

/* Enter and leave the busy table.  pass_busy_add() fails when it is full. */
bool pass_busy_add (struct pass *p, uint64_t first, uint64_t count);
void pass_busy_remove (struct pass *p, uint64_t first);

/* Is any block of the range busy? */
bool pass_busy_any (const struct pass *p, uint64_t first, uint64_t count);
/* Is any block of R both busy and dirty? */
bool pass_busy_dirty (const struct pass *p, const struct region *r);
/* Is any range busy whose number is at most NUMBER? */
bool pass_busy_since (const struct pass *p, uint64_t number);

/* The first run in [FROM, END) that is dirty, not busy and not known to be unreadable, at most MAX
 * blocks of it.  False if there is none. */
bool pass_free_run (const struct pass *p, const struct region *r, uint64_t from, uint64_t end,
                    uint64_t max, uint64_t *first, uint64_t *count);

/* Store the answer to a PASS_ASK at byte OFFSET.  NR is 0 if the question failed: then LENGTH bytes
 * count as data. */
void pass_set_hints (struct pass *p, uint64_t offset, uint64_t length,
                     const struct endpoint_extent *extents, unsigned nr);

#endif
