/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * From the block status of a disk to that of its digests.  A digest is known to be zero where the
 * whole of its block reads as zero; so a block that is partly data, or is cut by the end of what
 * was looked at, has to be put together first.  No I/O here.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_DIGEST_EXTENTS_H
#define NBDMIRROR_NBD_PLUGIN_DIGEST_EXTENTS_H

#include <stdbool.h>
#include <stdint.h>

/* A run of blocks is finished: NR of them, whose digests are (not) zero.  -1 ends the walk. */
typedef int (*digest_run) (void *opaque, uint64_t nr, bool zero);

struct digest_extents {
  uint64_t size;  /* of the disk, bytes */
  uint32_t block; /* bytes */
  uint64_t pos;   /* the first byte of the disk that was not looked at; begins at a block */
  bool zero;      /* what is known of the block at pos reads as zero */
};

/* The disk's next extent, as far as it goes within the disk: LENGTH bytes from pos on that read as
 * zero, or not.  Calls RUN at most twice.  0, or what RUN returned. */
int digest_extents_add (struct digest_extents *x, uint64_t length, bool zero, digest_run run,
                        void *opaque);

#endif
