/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The bell.  See bell.h.
 */

#include "config.h"

#include "base/clock.h"
#include "mirror/engine/bell.h"
#include "mirror/engine/engine.h"

#define LOOK_NS (100 * NS_PER_MS) /* it looks this often without being woken */

static void *
listen_to_it (void *opaque)
{
  struct bell *b = opaque;
  struct region *r = b->engine->region;

  while (!atomic_load (&b->stop)) {
    uint32_t seen = urgent_bell (r);
    if (urgent_any (r))
      engine_rung (b->engine);
    urgent_sleep (r, seen, LOOK_NS);
  }
  return NULL;
}

int
bell_start (struct bell *b, struct engine *e)
{
  if (b->running)
    return 0;
  b->engine = e;
  atomic_store (&b->stop, false);
  int err = pthread_create (&b->thread, NULL, listen_to_it, b);
  b->running = err == 0;
  return err;
}

void
bell_stop (struct bell *b)
{
  if (!b->running)
    return;
  atomic_store (&b->stop, true);
  urgent_ring (b->engine->region);
  pthread_join (b->thread, NULL);
  b->running = false;
}
