/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The two machines of a migration, and waiting for either of them or for a signal.
 */

#ifndef NBDMIRROR_CMD_MIGRATE_MACHINES_H
#define NBDMIRROR_CMD_MIGRATE_MACHINES_H

#include <poll.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "cmd/migrate/machine.h"

struct machines {
  struct machine source, dest;
  _Atomic int *signal; /* set by a signal handler, and then */
  int signal_fd;       /* this can be read; it wakes only once */
};

/* Wait for up to MS until either machine tells an event, or a signal comes, and take the events
 * in. */
void machines_wait (struct machines *m, int ms);

/* The same, or until one of the first NR of FDS is ready.  Behind them is room for MACHINES_FDS. */
#define MACHINES_FDS 3
void machines_wait_with (struct machines *m, struct pollfd *fds, unsigned nr, int ms);

/* The connection to V, one of M, was lost.  Has its QEMU ended, or does it end within a moment?
 * True only where that is certain: of a forwarded monitor it never is. */
bool machines_wait_dead (struct machines *m, struct machine *v);

#endif
