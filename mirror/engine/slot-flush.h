/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The steps of WORK_FLUSH.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_SLOT_FLUSH_H
#define NBDMIRROR_MIRROR_ENGINE_SLOT_FLUSH_H

#include "mirror/engine/slot.h"

/* Begin, with SL's task filled in. */
void slot_flush_start (struct slot *sl);

#endif
