/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A copier: one thread of a session, with an event loop, a channel to the source, one to the
 * destination, and a few slots (slot.h).
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_COPIER_H
#define NBDMIRROR_MIRROR_ENGINE_COPIER_H

#include <pthread.h>
#include <stdbool.h>

#include "mirror/engine/slot.h"

struct copier {
  struct slots slots;
  bool flusher; /* it sends the flushes */
  bool at_once; /* the source answered the last read at once, from the page cache */
  int wake_fd;
  unsigned left; /* requests that had no answer when the thread ended */
  pthread_t thread;
};

/* Make the slots and the wake-up descriptor.  The caller sets the channels of C->slots.  0, or -1
 * with errno; copier_destroy() is due in both cases. */
int copier_init (struct copier *c, struct engine *e, struct target *target, unsigned nr_copiers,
                 bool flusher);
/* Close the channels, which completes what is in flight.  The thread does this itself when it ends;
 * for one that was never started the session does. */
void copier_close (struct copier *c);
/* Free everything.  The channels are closed. */
void copier_destroy (struct copier *c);

/* The thread.  It ends when the session is to stop, or drains and nothing is left to wait for. */
void *copier_run (void *copier);
/* Let it look again for what to do.  Any thread. */
void copier_wake (struct copier *c);

#endif
