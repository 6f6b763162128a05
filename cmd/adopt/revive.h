/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The server that `adopt` has started for a guest's disk, started again as CONTROL.adopted says.
 *
 * A guest on the tracked path waits for its server when that is killed, and so does QEMU's monitor
 * as soon as QEMU waits for the guest's requests.  So this asks QEMU nothing.
 */

#ifndef NBDMIRROR_CMD_ADOPT_REVIVE_H
#define NBDMIRROR_CMD_ADOPT_REVIVE_H

#include <stdbool.h>
#include <jansson.h>

/* Start the server that RECORD describes.  0, or -1 after an error message of that program. */
int revive_start (const char *control, const json_t *record);

/* Start it again where it is gone and adopt had started it.  Left alone is
 *   - a disk that was handed over or moved to other storage (CONTROL.fence), unless FENCED_TOO: its
 *     server refuses the guest's writes
 *   - an image that QEMU, which listens at the socket QMP, has open by itself, if CONTROL.bypass
 *     does not keep mirrors away meanwhile.  QMP is NULL where the guest needs the server for sure
 * True: a server was started. */
bool revive (const char *control, const json_t *record, const char *qmp, bool fenced_too);

#endif
