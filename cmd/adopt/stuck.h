/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A watch over steps that QEMU's monitor may hang in.  While QEMU waits for an answer of a server,
 * its monitor answers nobody, so the thread that asks it can only wait.  Another one helps: it
 * kills the server that does not answer.
 */

#ifndef NBDMIRROR_CMD_ADOPT_STUCK_H
#define NBDMIRROR_CMD_ADOPT_STUCK_H

#include <stdbool.h>
#include <pthread.h>

#define STUCK_MS 2000 /* a busy host may need a second for it all */
/* QEMU tries to connect at once, and again after one second. */
#define STUCK_AGAIN_MS 4000

struct stuck_watch {
  /* Called in a thread of its own when the steps take longer than STUCK_MS, and once more after
   * STUCK_AGAIN_MS (ATTEMPT is 1, then 2). */
  void (*stuck) (void *opaque, unsigned attempt);
  void *opaque;

  /* The rest is private. */
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t ended;
  bool over; /* under lock */
};

/* 0, or -1 with *ERROR (text_free()). */
int stuck_watch_start (struct stuck_watch *w, char **error);

/* The steps are done.  Returns when STUCK is not being called, nor will be. */
void stuck_watch_end (struct stuck_watch *w);

#endif
