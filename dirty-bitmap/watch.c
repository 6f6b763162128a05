/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See watch.h.
 */

#include "config.h"

#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/urgent.h"
#include "dirty-bitmap/watch.h"

bool
watch_begin (struct region *r)
{
  atomic_store (&r->hdr->watched, 1);
  return bitmap_empty (r, REGION_DIRTY);
}

void
watch_ring (struct region *r)
{
  if (atomic_exchange (&r->hdr->watched, 0) != 0)
    urgent_ring (r);
}
