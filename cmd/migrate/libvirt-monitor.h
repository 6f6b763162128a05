/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The monitor of a guest of libvirt's.  libvirt keeps QEMU's monitor to itself, and passes single
 * commands on: `virsh qemu-monitor-command`.  The guest is marked as tainted (custom-monitor) then.
 * No event arrives here, so this serves `adopt` and `give-back`, and not `migrate`.
 *
 * Where a command takes the path of a monitor's socket, such a guest is named libvirt:NAME.
 */

#ifndef NBDMIRROR_CMD_MIGRATE_LIBVIRT_MONITOR_H
#define NBDMIRROR_CMD_MIGRATE_LIBVIRT_MONITOR_H

#include <stdbool.h>
#include <jansson.h>
#include <sys/types.h>

/* Is PATH such a name? */
bool libvirt_is_meant (const char *path);

/* Is PATH the socket that libvirt uses itself?  Nobody else is ever served there. */
bool libvirt_owns (const char *path);

/* The QEMU process of the guest PATH, of this host's system libvirt.  0: not known. */
pid_t libvirt_process (const char *path);

/* Run a command; steals ARGS.  0 with *RET (a new reference; RET may be NULL), or -1 with *ERROR
 * and, where QEMU has answered with an error, its *CLASS; both for text_free().  It takes as long
 * as libvirt and QEMU take. */
int libvirt_call (const char *path, const char *command, json_t *args, json_t **ret, char **class_,
                  char **error);

#endif
