/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * This disk is being received: the receive filter stands above us, and until the disk is sealed it
 * has no guest (control/take-over.h).  Until then no job and no checkpoint may begin.  A fence
 * record that is there from the time before the disk was handed over does not close the gate: the
 * receive filter keeps guests out, and mirrors have to write.  When the disk is sealed the record
 * is removed, and a checkpoint begins.
 *
 * Control thread, or before it runs.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_RECEIVING_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_RECEIVING_H

#include <stdbool.h>

#include "control/take-over.h"

/* What clients are told that come too early. */
#define RECEIVING_REFUSAL "this disk is being received: it has no guest yet"

#define RECEIVING_NO_CHECKPOINT                                                                    \
  "the checkpoint '" TAKE_OVER_CHECKPOINT                                                          \
  "' does not begin, so the way back will be a whole copy: %s"

struct mirror;

/* mirror-take-over-fd=FD, which the receive filter has as well, and keeps.  0, or -1 with errno. */
int receiving_open (struct mirror *m, int fd);

/* Has the disk no guest yet? */
bool receiving_is (const struct mirror *m);

/* What the control thread polls; -1: nothing. */
int receiving_wake_fd (const struct mirror *m);

void receiving_tick (struct mirror *m);

#endif
