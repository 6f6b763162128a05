/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Noticing that the server is to stop.
 *
 * nbdkit waits for every client to leave before it tells a filter that the server stops, and the
 * worker is such a client.  nbdkit_nanosleep() knows earlier, but it logs an error each time when
 * it says so.  So the signals that stop nbdkit are watched as well: our handler remembers the
 * signal, wakes the control thread, and calls nbdkit's handler.
 *
 * A server can also be stopped without a signal (nbdkit_shutdown(), for example by the exitlast
 * filter).  Where that matters, ask nbdkit_nanosleep() too.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_SHUTDOWN_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_SHUTDOWN_H

#include <stdbool.h>

/* Begin to watch.  WAKE_FD is a wake-up (base/fd.h) that is rung once.  To be called in
 * after_fork, when nbdkit has installed its own handlers. */
void shutdown_watch (int wake_fd);

/* Give nbdkit's handlers back: before this code is unloaded. */
void shutdown_unwatch (void);

/* Was the server told to stop by a signal?  Any thread. */
bool shutdown_signalled (void);

#endif
