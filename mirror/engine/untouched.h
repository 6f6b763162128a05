/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Was a run of blocks left alone while somebody looked at it?  For the verification of a live copy
 * (mirror/job/live-verify.h), which compares source and destination while the guest writes.
 *
 * Between untouched_begin() and untouched_end() every block that is dirty, claimed or in quarantine
 * at one of the two moments, and every block that a copier takes in between, is noted as touched.
 * For a block that is not, the following holds:
 *
 *   - it was clean at the beginning, so what the destination holds had been acknowledged and
 * flushed
 *   - nothing was sent to the destination for it in between, for that takes a claim, and taking one
 *     is noted here under the engine's lock
 *   - no mutation of it that was over at the end began in between: it would have marked the block
 *     before its reply (R2), and the block would be dirty, or have been taken
 *
 * One thing is left: a mutation that is still on its way may have changed the source already and
 * marks the block later.  Whoever finds a difference has to wait until the filter's count of
 * mutations in flight was seen at 0, before it calls untouched_end().
 *
 * The struct is the caller's, and in one thread's hands.  Any thread may have one.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_UNTOUCHED_H
#define NBDMIRROR_MIRROR_ENGINE_UNTOUCHED_H

#include <stdbool.h>
#include <stdint.h>

struct engine;

#define UNTOUCHED_MAX 2048u /* blocks */

struct untouched {
  uint64_t first, count; /* blocks */
  struct untouched *next;
  uint64_t touched[UNTOUCHED_MAX / 64]; /* a bit a block, from first on */
};

/* COUNT is 1 to UNTOUCHED_MAX.  Every begun run must be ended before the engine is destroyed. */
void untouched_begin (struct engine *e, struct untouched *u, uint64_t first, uint64_t count);
void untouched_end (struct engine *e, struct untouched *u);

/* After the end: was this block (counted from u->first) left alone?  Before it: can it still have
 * been? */
bool untouched_is (const struct untouched *u, uint64_t block);

/* The blocks that are left alone turned out to be wrong at the destination: make one run of them
 * dirty, so that it is copied again. */
void untouched_copy_again (struct engine *e, uint64_t first, uint64_t count);

/* Verification sends BYTES to or from the destination.  0: they are paid for; else for how long
 * (ns) the bandwidth limit wants it to wait. */
uint64_t untouched_pay (struct engine *e, uint64_t bytes);

/* For the engine, with its lock held: a copier takes this run. */
void untouched_taken (struct engine *e, uint64_t first, uint64_t count);

#endif
