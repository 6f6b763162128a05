/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The bell: a thread that sleeps until a guest's write asks for something (urgent.h), and then
 * wakes the copiers.  It runs only while the gate is synchronous.  It uses engine_rung() and takes
 * no lock of its own.
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

/* Start and stop the thread.  One thread calls both.  They do nothing where there is nothing to do.
 * 0, or an errno. */
int bell_start (struct bell *b, struct engine *e);
void bell_stop (struct bell *b);

#endif
