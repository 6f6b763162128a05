/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The difference: which parts of a claimed run need not be sent, because the destination has them
 * already (engine.h, enum engine_sync):
 *
 *   top      the source's top layer does not hold the part, so it is still as in the base, which
 *            the destination has below it.  The source's server tells (qemu:allocation-depth)
 *   base     it equals the base image, which is read beside the source
 *   compare  it equals what the destination holds.  Its digests are compared if the destination
 *            serves them, else it is read
 *
 * What is found to be the same is released by the same flush as what was written (R4), so nothing
 * else in the engine knows of the difference.  Why this is safe:
 *
 * - The look comes after the claim.  What the guest writes later is marked dirty, and copied again.
 * - A block is looked at only if it was never visited before (REGION_VISITED).  For `top` and
 *   `base` this is essential: a block that this job has sent once holds no base any more at the
 *   destination, even if the guest turns it back into what the base holds.
 * - A block in quarantine is always written and read back (R12), as a late request of a dead
 *   session may still change it.
 *
 * Everything here runs in the copier's thread.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_DIFFERENCE_H
#define NBDMIRROR_MIRROR_ENGINE_DIFFERENCE_H

#include "mirror/engine/slot.h"

/* Is SL, whose task is a claimed run, to be looked at, and when? */
enum difference_look difference_when (const struct slot *sl);

/* Begin the look.  DONE is called once when it has ended, maybe from within this call; it may have
 * failed, and then nothing counts as the same. */
void difference_begin (struct slot *sl, void (*done) (struct slot *sl));

/* After the look, and with DIFFERENCE_BESIDE after the read of the source as well: set
 * sl->data.same. */
void difference_end (struct slot *sl);

/* Has the look moved as many bytes over the line to the destination as sending them would?  The
 * bandwidth limit counts them then. */
bool difference_costs (const struct slot *sl);

#endif
