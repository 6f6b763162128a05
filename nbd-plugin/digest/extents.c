/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Block status of digests.  See extents.h.
 */

#include "config.h"

#include "nbd-plugin/digest/extents.h"

int
digest_extents_add (struct digest_extents *x, uint64_t length, bool zero, digest_run run,
                    void *opaque)
{
  uint64_t end = length < x->size - x->pos ? x->pos + length : x->size;
  uint64_t into = x->pos % x->block;

  /* The rest of a block that another extent began. */
  if (into > 0) {
    uint64_t block_end = x->pos - into + x->block < x->size ? x->pos - into + x->block : x->size;
    x->zero = x->zero && zero;
    x->pos = end < block_end ? end : block_end;
    if (x->pos < block_end)
      return 0;
    int r = run (opaque, 1, x->zero);
    if (r != 0)
      return r;
  }
  if (x->pos == end)
    return 0;

  /* Whole blocks.  The disk's last one is whole where the disk ends. */
  uint64_t nr = (end - x->pos) / x->block;
  if (end == x->size && (end - x->pos) % x->block > 0)
    nr++;
  x->pos = end;
  x->zero = zero;
  return nr > 0 ? run (opaque, nr, zero) : 0;
}
