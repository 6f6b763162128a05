/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Samples: what some flushed blocks of the destination begin with, kept in the shared
 * region so that the next worker can tell whether a destination is the one that this bitmap was
 * counting against (rule R13).  A sample is compared only while its block is neither claimed nor in
 * quarantine: then the destination must hold exactly what was flushed.
 *
 * Written by the worker only, at claim_release time and before the claims are dropped: every sample
 * whose block is in the flushed set is replaced or removed.  Content from shared memory is
 * untrusted: samples_get() returns private copies, checked against the geometry.
 */

#ifndef NBDMIRROR_DIRTY_BITMAP_SAMPLES_H
#define NBDMIRROR_DIRTY_BITMAP_SAMPLES_H

#include "dirty-bitmap/region.h"

#define SAMPLE_BYTES 4096u
#define SAMPLES_MAX 64u

struct sample {
  uint64_t block;
  uint32_t length; /* bytes of data that count, 1 to SAMPLE_BYTES; 0: unused entry */
  uint32_t pad;
  uint8_t data[SAMPLE_BYTES]; /* the first bytes of the block */
};

/* Bytes of the table in the region: an order and an entry for each sample, and a counter. */
#define SAMPLES_TABLE_BYTES (64u + SAMPLES_MAX * (sizeof (struct sample) + 8))

/* Copy entry I (< SAMPLES_MAX) into *OUT.  False if it is unused or makes no sense. */
bool samples_get (const struct region *r, unsigned i, struct sample *out);

/* Store S: over the entry of the same block if there is one, else over an unused one, else over the
 * oldest of the second half.  So half of the samples are of blocks that nobody writes to, as long
 * as there are such, and half are of what was written lately. */
void samples_put (struct region *r, const struct sample *s);

/* Remove every sample whose block has its bit set in array A. */
void samples_drop_in (struct region *r, enum region_array a);

/* Copy all valid samples of OLD into FRESH. */
void samples_copy (struct region *fresh, const struct region *old);

#endif
