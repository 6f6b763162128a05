/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Waking a worker that has nothing to do.  While nothing is dirty the worker sleeps, and asks the
 * filter to ring the bell (urgent.h) when a block turns dirty.
 *
 *   worker                          filter, at each mutation of the guest
 *   watched = 1                     set the dirty bits
 *   is anything dirty?  then don't  is it watched?  then watched = 0, and ring the bell
 *   sleep
 *
 * All of this is sequentially consistent, so one of the two sees the other: no block turns dirty
 * behind the back of a sleeping worker.  While nobody watches it costs a mutation one look at a
 * word beside those that it has just written.
 */

#ifndef NBDMIRROR_DIRTY_BITMAP_WATCH_H
#define NBDMIRROR_DIRTY_BITMAP_WATCH_H

#include <stdatomic.h>
#include <stdbool.h>

#include "dirty-bitmap/region.h"

/* The worker: ring the bell at the next block that turns dirty.  False: one is dirty already, so do
 * not sleep. */
bool watch_begin (struct region *r);

/* The filter: the bits of a mutation are set. */
void watch_ring (struct region *r);
static inline void
watch_marked (struct region *r)
{
  if (__builtin_expect (atomic_load (&r->hdr->watched) != 0, 0))
    watch_ring (r);
}

#endif
