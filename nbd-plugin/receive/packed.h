/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A connection whose writes may be compressed (compress/pack.h says how).
 *
 *   whole ──(a pack that cannot be unpacked)──> broken
 *
 * What was damaged on its way may not be the only thing that was, so a broken connection answers
 * nothing but ESHUTDOWN, as one whose session has ended does.  The client connects anew then.
 *
 * Any of nbdkit's threads may call any of these, several at a time.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_RECEIVE_PACKED_H
#define NBDMIRROR_NBD_PLUGIN_RECEIVE_PACKED_H

#include <stdbool.h>
#include <stdint.h>

#include <nbdkit-filter.h>

#include "compress/pack.h"

struct packed;

/* NULL with errno. */
struct packed *packed_new (void);
void packed_free (struct packed *p); /* NULL is allowed */
/* The filter ends: no connection is left. */
void packed_unload (void);

/* The size of the export of a disk of SIZE bytes.  -1, and it was logged, if that is too large. */
int64_t packed_size (struct packed *p, int64_t size);

bool packed_is_broken (struct packed *p);

/* Does the range lie in the disk?  nbdkit has compared it with the export's size only.  False with
 * *ERR. */
bool packed_in_disk (struct packed *p, uint32_t count, uint64_t offset, int *err);

/* Write what a pack of COUNT bytes holds.  OFFSET is at least PACK_OFFSET.  0, or -1 with *ERR. */
int packed_write (struct packed *p, nbdkit_next *next, const void *pack, uint32_t count,
                  uint64_t offset, uint32_t flags, int *err);

#endif
