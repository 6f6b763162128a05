/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The monitor of a guest whose disk is put from one node to another: may we do that there?
 */

#ifndef NBDMIRROR_CMD_ADOPT_MONITOR_H
#define NBDMIRROR_CMD_ADOPT_MONITOR_H

#include <stdbool.h>
#include <sys/types.h>

#include "cmd/migrate/machine.h"

/* Connect to V's monitor, and see that its QEMU is new enough.  A guest of libvirt's is refused,
 * unless UNDER_LIBVIRT: libvirt keeps its own list of the nodes, and would not know of the change.
 * 0, or -1 with *ERROR (text_free()) and *REFUSED, which tells a refusal from a failure. */
int monitor_open (struct machine *v, bool under_libvirt, bool *refused, char **error);

/* The QEMU process, or 0 where the monitor is a forwarded one. */
pid_t monitor_process (const struct machine *v);

#endif
