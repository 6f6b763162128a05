/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Samples: what some blocks of the destination begin with, kept in the shared region so that the
 * next worker can tell whether a destination is the one that this bitmap was counting against (rule
 * R13).  There are two kinds.
 *
 * SAMPLE_SENT is what this job has sent and flushed, and only this destination holds.  It is
 * compared while its block is neither claimed nor in quarantine: then the destination must hold
 * exactly what was flushed.
 *
 * SAMPLE_FOUND is what was there without our doing, a base for instance, and may be elsewhere as
 * well.  It is compared as well while its block was never visited, since nothing was sent there
 * then.  It proves enough as long as nothing that was sent is durable: all of that is sent again.
 *
 * Written by the worker only, before it begins to copy, and later at claim_release time before the
 * claims are dropped: every sample whose block is in the flushed set is replaced or removed, unless
 * the block was never visited.  Content from shared memory is untrusted: samples_get() returns
 * private copies, checked against the geometry.
 */

#ifndef NBDMIRROR_DIRTY_BITMAP_SAMPLES_H
#define NBDMIRROR_DIRTY_BITMAP_SAMPLES_H

#include "dirty-bitmap/region.h"

#define SAMPLE_BYTES 4096u
#define SAMPLES_MAX 64u
#define SAMPLES_FOUND 16u /* of them, for SAMPLE_FOUND */

enum sample_kind { SAMPLE_FOUND, SAMPLE_SENT };

struct sample {
  uint64_t block;
  uint32_t length;            /* bytes of data that count, 1 to SAMPLE_BYTES; 0: unused entry */
  uint32_t kind;              /* enum sample_kind; any other number counts as SAMPLE_FOUND */
  uint8_t data[SAMPLE_BYTES]; /* the first bytes of the block */
};

/* Bytes of the table in the region: an order and an entry for each sample, and a counter. */
#define SAMPLES_TABLE_BYTES (64u + SAMPLES_MAX * (sizeof (struct sample) + 8))

/* Copy entry I (< SAMPLES_MAX) into *OUT.  False if it is unused or makes no sense. */
bool samples_get (const struct region *r, unsigned i, struct sample *out);

/* Store S in place of one of the same block, or in an unused entry, or over an older one.  Each
 * kind has a part of the table.  Where that of SAMPLE_FOUND is full, S is not kept.  Of that of
 * SAMPLE_SENT the oldest entry of the second half is replaced: so half of these samples are of
 * blocks that nobody writes to, as long as there are such, and half are of what was written lately.
 */
void samples_put (struct region *r, const struct sample *s);

/* May S be compared with what the destination holds?  No claim may be held: no session runs. */
bool samples_comparable (const struct region *r, const struct sample *s);

/* Remove every sample whose block has its bit set in array A, but not what was found at a block
 * that was never visited. */
void samples_drop_in (struct region *r, enum region_array a);

/* Copy all valid samples of OLD into FRESH, and whether anything that was sent is durable. */
void samples_copy (struct region *fresh, const struct region *old);

#endif
