/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The control thread: it alone talks to users and workers.  It is started in after_fork and joined
 * in cleanup.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_THREAD_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_THREAD_H

struct mirror;

int mirror_thread_start (struct mirror *m); /* 0, or -1 with errno */
void mirror_thread_stop (struct mirror *m); /* joins; nothing happens if it does not run */

/* Everything that time, the gate, the decision word or the worker's process may have changed; then
 * events.  Called after every wait and around every command. */
void mirror_tick (struct mirror *m);

#endif
