/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A thread of a filter's own inside nbdkit.  Both filters have one.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_OWN_THREAD_H
#define NBDMIRROR_NBD_PLUGIN_OWN_THREAD_H

#include <pthread.h>

/* Start RUN (OPAQUE) with all signals blocked, so that nbdkit's handlers run where nbdkit expects
 * them; but for SIGBUS, which is about a page that the thread itself touches.  To be called in
 * after_fork: a thread does not survive nbdkit's fork.  0, or -1 with errno; the caller joins the
 * thread. */
int own_thread_start (pthread_t *thread, void *(*run) (void *), void *opaque);

#endif
