/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The bell: a thread that sleeps until the filter rings, because a guest's write asks for something
 * (urgent.h) or a block turns dirty while the engine sleeps (watch.h).  Then it wakes the copiers.
 * It runs as long as a live job.  It uses engine_rung() and takes no lock of its own.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_BELL_H
#define NBDMIRROR_MIRROR_ENGINE_BELL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

struct engine;

struct bell {
  struct engine *engine;
  bool running;
  pthread_t thread;
  _Atomic bool stop;
};

/* Start the thread, and let the engine sleep while it has nothing to do.  If it cannot be started
 * the engine looks for work every few milliseconds instead.  Stopping does nothing where there is
 * none.  One thread calls both. */
void bell_start (struct bell *b, struct engine *e);
void bell_stop (struct bell *b);

#endif
