/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A process that sees to it that no guest stays stopped: when the process that has stopped it is
 * killed, or takes too long, this one does the rest.
 */

#ifndef NBDMIRROR_CMD_ADOPT_STOPPED_GUEST_H
#define NBDMIRROR_CMD_ADOPT_STOPPED_GUEST_H

#include <sys/types.h>

#define STOPPED_GUEST_LIMIT_MS 60000 /* then the process that has stopped it is killed */

struct stopped_guest {
  pid_t pid; /* 0: there is none */
  int fd;
};

/* Start it.  When this process ends without stopped_guest_end(), SETTLE is called there, with all
 * descriptors closed but the standard ones.  0, or -1 with *ERROR (text_free()). */
int stopped_guest_start (struct stopped_guest *s, void (*settle) (void *opaque), void *opaque,
                         char **error);

/* Nobody has to be looked after any more.  It may be called twice. */
void stopped_guest_end (struct stopped_guest *s);

#endif
