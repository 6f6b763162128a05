/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror mirror qmp:SOCKET/NODE DEST: a disk that a running QEMU has open by itself.
 */

#ifndef NBDMIRROR_CMD_TRACKED_MIRROR_QMP_H
#define NBDMIRROR_CMD_TRACKED_MIRROR_QMP_H

#include "cmd/worker.h"
#include "mirror/job/copy.h"

/* Run the whole job, and return the exit status.  O has the destination and the settings, but not
 * the source, the tracker, the signals and the callbacks. */
int mirror_qmp_run (const char *source, struct worker *w, const struct worker_settings *settings,
                    struct copy_options *o);

#endif
