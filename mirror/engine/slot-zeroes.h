/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The steps of WORK_ZERO.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_SLOT_ZEROES_H
#define NBDMIRROR_MIRROR_ENGINE_SLOT_ZEROES_H

#include "mirror/engine/slot.h"

/* Begin, with SL's task, offset and length filled in. */
void slot_zeroes_start (struct slot *sl);

#endif
