/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The end of a received disk's server whose supervisor was killed: nobody would start it again,
 * tell what it says, or end it, and the disk would stay locked.  So it ends by itself, but never
 * under a guest.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_RECEIVE_ORPHAN_H
#define NBDMIRROR_NBD_PLUGIN_RECEIVE_ORPHAN_H

#include <stdbool.h>

/* Begin to watch, in a thread of its own; to be called in the server's first thread.  NOTIFY_FD is
 * the pipe to the supervisor.  When that has gone, and from then on as soon as IN_USE says no, the
 * server is shut down; clients that do not leave are cut off 3 s later.  -1 with errno. */
int orphan_watch_start (int notify_fd, bool (*in_use) (void));
/* At the end of the server. */
void orphan_watch_stop (void);

#endif
