/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See extents.h.
 */

#include "config.h"

#include <errno.h>
#include <stdlib.h>

#include "nbd-plugin/image/extents.h"

/* The flags of "base:allocation", in the NBD protocol. */
#define HOLE UINT32_C (1)
#define ZERO UINT32_C (2)
/* "qemu:allocation-depth": 0 is in no layer, 1 in the top layer. */
#define FIRST_LOWER_LAYER 2

void
extents_begin (struct image_extents *e, uint64_t offset, uint64_t end)
{
  e->offset = offset;
  e->end = end;
  e->failed = false;
  for (unsigned i = 0; i < EXTENTS_CONTEXTS; i++)
    e->list[i].nr = 0;
}

void
extents_take (struct image_extents *e, enum extents_context context, const uint32_t *entries,
              size_t nr)
{
  struct extent_list *l = &e->list[context];

  for (size_t n = 0; n + 1 < nr; n += 2) {
    if (l->nr == l->room) {
      size_t room = l->room == 0 ? 64 : 2 * l->room;
      struct extent *more = realloc (l->extent, room * sizeof *more);
      if (more == NULL) {
        e->failed = true;
        return;
      }
      l->extent = more;
      l->room = room;
    }
    if (entries[n] > 0)
      l->extent[l->nr++] = (struct extent){ entries[n], entries[n + 1] };
  }
}

static uint32_t
with_depth (uint32_t type, uint32_t depth)
{
  if (depth >= FIRST_LOWER_LAYER)
    return HOLE;
  /* Alone it would say that a lower layer holds it. */
  return (type & ZERO) != 0 ? type & (HOLE | ZERO) : 0;
}

int
extents_tell (const struct image_extents *e, bool layers,
              int (*tell) (void *opaque, uint64_t offset, uint64_t length, uint32_t type),
              void *opaque)
{
  const struct extent_list *a = &e->list[EXTENTS_ALLOCATION], *d = &e->list[EXTENTS_DEPTH];
  uint64_t at = e->offset, end_a = at, end_d = at; /* of what I and K have got to */
  size_t i = 0, k = 0;

  if (e->failed)
    return ENOMEM;
  if (a->nr == 0 || (layers && d->nr == 0))
    return EPROTO;
  while (at < e->end && i < a->nr && (!layers || k < d->nr)) {
    uint32_t type = layers ? with_depth (a->extent[i].type, d->extent[k].type) : a->extent[i].type;
    end_a = end_a > at ? end_a : at + a->extent[i].length;
    if (layers)
      end_d = end_d > at ? end_d : at + d->extent[k].length;
    uint64_t end = layers && end_d < end_a ? end_d : end_a;
    i += end == end_a;
    k += layers && end == end_d;
    if (tell (opaque, at, (end < e->end ? end : e->end) - at, type) == -1)
      return EIO;
    at = end;
  }
  return 0;
}

void
extents_free (struct image_extents *e)
{
  for (unsigned i = 0; i < EXTENTS_CONTEXTS; i++)
    free (e->list[i].extent);
}
