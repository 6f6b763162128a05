/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The answers to a block status request: up to two meta contexts, each with extents of its own, of
 * which an op gets what both say.
 */

#include "config.h"

#include <errno.h>
#include <string.h>

#include "mirror/endpoint/nbd.h"

/* The length of all extents of OP. */
static uint64_t
covered (const struct op *op)
{
  uint64_t n = 0;
  for (unsigned i = 0; i < op->nr_extents; i++)
    n += op->extents[i].length;
  return n;
}

/* OLD is what one meta context has answered for OP, and X, at byte AT of it, is a part of what the
 * other one answers.  Add what both say.  False if there is no room. */
static bool
add_both (struct op *op, const struct endpoint_extent *old, unsigned nr_old, uint64_t at,
          struct endpoint_extent x)
{
  uint64_t start = 0;

  for (unsigned i = 0; i < nr_old; start += old[i++].length) {
    uint64_t from = start > at ? start : at, end = start + old[i].length;
    if (end > at + x.length)
      end = at + x.length;
    if (from >= end)
      continue;
    struct endpoint_extent both
        = { .length = end - from, .zero = old[i].zero || x.zero, .lower = old[i].lower || x.lower };
    if (!op_add_extent (op, both))
      return false;
  }
  return true;
}

int
nbd_take_extents (struct op *op, uint64_t *status_ask, const char *context, uint64_t offset,
                  const uint32_t *entries, size_t nr_entries, int *error)
{
  bool layers = strcmp (context, LAYERS) == 0, room = true;
  bool by_holes = op->ch->ep->opts.layers_export != NULL; /* control/layers-export.h */
  struct endpoint_extent old[ENDPOINT_MAX_EXTENTS];
  unsigned nr_old = op->nr_extents;
  uint64_t at = 0;

  if (op->nr_contexts > 1 || (!layers && strcmp (context, ALLOCATION) != 0))
    return 0;
  if (offset != op->offset) {
    *error = EPROTO;
    return -1;
  }
  /* The contexts answer one after the other, and maybe for different lengths. */
  uint64_t all = op->nr_contexts++ == 0 ? op->len : covered (op);
  memcpy (old, op->extents, nr_old * sizeof old[0]);
  op->nr_extents = 0;
  for (size_t i = 0; i + 1 < nr_entries && at < all && entries[i] > 0 && room; i += 2) {
    bool zero = !layers && (entries[i + 1] & LIBNBD_STATE_ZERO) != 0;
    bool hole = (entries[i + 1] & LIBNBD_STATE_HOLE) != 0;
    struct endpoint_extent x
        = { .length = entries[i] < all - at ? entries[i] : all - at,
            .zero = zero,
            .allocated = zero && !hole,
            .lower = layers ? entries[i + 1] >= FIRST_LOWER_LAYER : by_holes && hole && !zero };
    room = nr_old > 0 ? add_both (op, old, nr_old, at, x) : op_add_extent (op, x);
    at += x.length;
  }
  /* A server that lists a fragmented disk does work for extents that have no room here. */
  if (op->first_only)
    return 0;
  if (!room)
    *status_ask = op->len / 2 > 1048576 ? op->len / 2 & ~UINT64_C (65535) : 1048576;
  else if (op->nr_extents < ENDPOINT_MAX_EXTENTS / 4 && *status_ask < ENDPOINT_MAX_STATUS)
    *status_ask = *status_ask > ENDPOINT_MAX_STATUS / 2 ? ENDPOINT_MAX_STATUS : *status_ask * 2;
  return 0;
}
