/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Compare random blocks of the destination with what they should be.  A block that differs proves
 * that the destination is not what it was taken for.  If none differs, that proves nothing, but it
 * is unlikely that much of the destination is something else.
 */

#ifndef NBDMIRROR_MIRROR_JOB_SAMPLING_H
#define NBDMIRROR_MIRROR_JOB_SAMPLING_H

#include <stdbool.h>
#include <stdint.h>

#include "mirror/endpoint/endpoint.h"
#include "mirror/job/job.h"

#define SAMPLING_BLOCKS 1000

struct sampling {
  struct endpoint *ours; /* what it should be; where this ends, zeroes follow */
  struct endpoint *dest; /* opened, nothing was written */
  uint64_t size;         /* of the disk, bytes */
  /* Look where either side holds data: on a disk that is mostly empty any other empty disk would
   * pass. */
  bool prefer_data;
  unsigned most;  /* samples; 0: SAMPLING_BLOCKS */
  uint32_t align; /* only at multiples of this, a power of two; 0: anywhere */
  /* Is this range to be left out, because it may differ?  Also asked when one has differed, LATE,
   * as it may have been changed since the first time.  NULL: none is. */
  bool (*leave_out) (void *opaque, uint64_t offset, uint64_t length, bool late);
  /* Told of each block that is equal and not zero.  May be NULL. */
  void (*equal) (void *opaque, uint64_t offset, const uint8_t *data, uint32_t length);
  /* Told of how many have been compared, now and then.  May be NULL. */
  void (*progress) (void *opaque, uint64_t compared);
  void *opaque;
  const _Atomic int *signal; /* not 0: stop.  May be NULL */
};

struct sampled {
  uint64_t blocks, compared; /* that the disk has, and of them */
  uint64_t where;            /* JOB_REFUSED: the offset of the one that differs */
};

/* JOB_COMPLETED: all that were compared are equal.  JOB_REFUSED: one differs, without *ERROR.  Else
 * JOB_DEST_FAILED, JOB_FAILED or JOB_CANCELLED with *ERROR (base/text.h, the caller frees it). */
enum job_result sampling_compare (const struct sampling *s, struct sampled *found, char **error);

#endif
