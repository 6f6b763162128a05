/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Block status, as qemu-nbd tells it, and what of it is told on.  Plain data without I/O, for one
 * thread at a time.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_IMAGE_EXTENTS_H
#define NBDMIRROR_NBD_PLUGIN_IMAGE_EXTENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The contexts of block status that are asked for. */
enum extents_context { EXTENTS_ALLOCATION, EXTENTS_DEPTH, EXTENTS_CONTEXTS };

/* What one context has answered, from the offset that was asked for on. */
struct extent_list {
  struct extent {
    uint64_t length;
    uint32_t type;
  } * extent;
  size_t nr, room;
};

struct image_extents {
  uint64_t offset, end; /* the range that was asked for */
  struct extent_list list[EXTENTS_CONTEXTS];
  bool failed; /* memory has run out */
};

/* Begin anew with a range. */
void extents_begin (struct image_extents *e, uint64_t offset, uint64_t end);

/* ENTRIES are NR numbers, lengths and types in turns, as libnbd has them. */
void extents_take (struct image_extents *e, enum extents_context context, const uint32_t *entries,
                   size_t nr);

/* Tell what "base:allocation" says, or with LAYERS what control/layers-export.h says, in order and
 * without a gap.  It may end before the range does; what lies behind the range is left out.  0, an
 * errno (ENOMEM, EPROTO if there is nothing to tell), or EIO if TELL returns -1. */
int extents_tell (const struct image_extents *e, bool layers,
                  int (*tell) (void *opaque, uint64_t offset, uint64_t length, uint32_t type),
                  void *opaque);

void extents_free (struct image_extents *e);

#endif
