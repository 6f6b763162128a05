/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The steps of WORK_DATA and WORK_VERIFY.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_SLOT_DATA_H
#define NBDMIRROR_MIRROR_ENGINE_SLOT_DATA_H

#include "mirror/engine/slot.h"

/* Begin, with SL's task, offset and length filled in.  READ_BACK: the run is in quarantine; a
 * second buffer must be free. */
void slot_data_start (struct slot *sl, bool read_back);

#endif
