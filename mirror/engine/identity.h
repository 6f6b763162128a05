/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Is this destination the one that the bitmap was counting against (rule R13)?
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_IDENTITY_H
#define NBDMIRROR_MIRROR_ENGINE_IDENTITY_H

#include <stdbool.h>
#include <stdint.h>

#include "dirty-bitmap/region.h"
#include "mirror/endpoint/endpoint.h"

enum identity {
  IDENTITY_SAME,   /* every comparable sample agrees (or there was none yet) */
  IDENTITY_OTHER,  /* some block does not hold what was flushed there */
  IDENTITY_UNKNOWN /* it could not be read */
};

/* Read the samples of R back over CH, a channel of DEST, and compare.  Claims must have been
 * revoked before; blocks in quarantine are left out.  At least one read is made if the disk is not
 * empty, and *RTT_NS is the shortest read's time.  Unless the result is IDENTITY_SAME, *ERROR says
 * what differs or failed (base/text.h, the caller frees it).  Blocks for as long as the channel's
 * time limits allow. */
enum identity identity_check (struct channel *ch, const struct endpoint *dest,
                              const struct region *r, uint64_t *rtt_ns, char **error);

/* The same over each connection of the NR channels CHS of DEST, with fewer samples: another server
 * may have answered one of them.  Nothing is read where there is no sample yet. */
enum identity identity_check_each (struct channel *const *chs, unsigned nr,
                                   const struct endpoint *dest, const struct region *r,
                                   char **error);

/* Does R have a sample that can be compared, and tells the destination from an empty disk, and from
 * what it was itself before the job sent anything that is durable by now?  Else such a disk would
 * have passed.  What is in quarantine proves nothing.  No session may run. */
bool identity_is_provable (const struct region *r);

#endif
