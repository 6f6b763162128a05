/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See stuck.h.
 */

#include "config.h"

#include <stdint.h>
#include <time.h>

#include "base/clock.h"
#include "base/text.h"
#include "cmd/adopt/stuck.h"

static void *
watch (void *opaque)
{
  struct stuck_watch *w = opaque;

  pthread_mutex_lock (&w->lock);
  for (unsigned attempt = 1; attempt <= 2 && !w->over; attempt++) {
    uint64_t ms = attempt == 1 ? STUCK_MS : STUCK_AGAIN_MS;
    struct timespec limit = clock_timespec (clock_ns () + ms * (uint64_t)NS_PER_MS);
    while (!w->over && pthread_cond_timedwait (&w->ended, &w->lock, &limit) == 0)
      ;
    if (w->over)
      break;
    pthread_mutex_unlock (&w->lock);
    w->stuck (w->opaque, attempt);
    pthread_mutex_lock (&w->lock);
  }
  pthread_mutex_unlock (&w->lock);
  return NULL;
}

int
stuck_watch_start (struct stuck_watch *w, char **error)
{
  pthread_condattr_t attr;

  w->over = false;
  pthread_mutex_init (&w->lock, NULL);
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&w->ended, &attr);
  pthread_condattr_destroy (&attr);
  if (pthread_create (&w->thread, NULL, watch, w) == 0)
    return 0;
  pthread_cond_destroy (&w->ended);
  pthread_mutex_destroy (&w->lock);
  return text_error (error, "cannot start a thread");
}

void
stuck_watch_end (struct stuck_watch *w)
{
  pthread_mutex_lock (&w->lock);
  w->over = true;
  pthread_cond_signal (&w->ended);
  pthread_mutex_unlock (&w->lock);
  pthread_join (w->thread, NULL);
  pthread_cond_destroy (&w->ended);
  pthread_mutex_destroy (&w->lock);
}
