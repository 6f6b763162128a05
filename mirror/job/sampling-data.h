/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Move random offsets to where a disk holds data.  On a disk that is mostly empty a random block
 * is nearly always zero, and says nothing: any other empty disk has the same.
 */

#ifndef NBDMIRROR_MIRROR_JOB_SAMPLING_DATA_H
#define NBDMIRROR_MIRROR_JOB_SAMPLING_DATA_H

#include <stdbool.h>
#include <stdint.h>

#include "mirror/endpoint/endpoint.h"

#define SAMPLING_MAX_SPOTS 256 /* at a time */

/* Where to look for data. */
struct sampling_spot {
  uint64_t offset; /* bytes; a multiple of the block size */
  bool wanted;     /* it is to be moved; false once it has been */
  bool in_hole;    /* an answer ended before the hole did, in which it is */
};

/* Ask CH, at which nothing else is going on, for the first extent at each offset that is wanted,
 * all questions at a time.  If that is data, move the offset to a random block of BLOCK bytes in
 * it, below SIZE.  An offset without data moves to the end of the extent, as far as it is known,
 * and stays wanted: ask again.  After a hole of any length below 1 GiB its data is found by the
 * third time.  At most SAMPLING_MAX_SPOTS.  The endpoint has can_status.  Blocks for one round trip
 * for each channel_room() of questions.  0, or a positive errno. */
int sampling_find_data (struct channel *ch, struct sampling_spot *spots, unsigned nr, uint64_t size,
                        uint32_t block);

#endif
