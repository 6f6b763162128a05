/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The bell: a thread that sleeps until a guest's write asks for something (urgent.h), and then
 * wakes the copiers.  It runs only while the gate is synchronous.
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

/* Both are one thread's, and do nothing if it is so already.  0, or an errno. */
int bell_start (struct bell *b, struct engine *e);
void bell_stop (struct bell *b);

#endif
