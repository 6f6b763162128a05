/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See aio-pool.h.
 */

#include "config.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include "mirror/endpoint/aio-pool.h"

#define KEPT_MAX 8

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static struct kept {
  io_context_t ctx;
  int events;
} kept[KEPT_MAX];
static unsigned nr_kept;

io_context_t
aio_pool_take (int events)
{
  io_context_t ctx = NULL;

  pthread_mutex_lock (&lock);
  for (unsigned i = 0; ctx == NULL && i < nr_kept; i++)
    if (kept[i].events == events) {
      ctx = kept[i].ctx;
      kept[i] = kept[--nr_kept];
    }
  pthread_mutex_unlock (&lock);
  if (ctx != NULL)
    return ctx;
  return io_setup (events, &ctx) == 0 ? ctx : NULL;
}

void
aio_pool_give (io_context_t ctx, int events)
{
  pthread_mutex_lock (&lock);
  bool room = nr_kept < KEPT_MAX;
  if (room)
    kept[nr_kept++] = (struct kept){ .ctx = ctx, .events = events };
  pthread_mutex_unlock (&lock);
  if (!room)
    io_destroy (ctx);
}
