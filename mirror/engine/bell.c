/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The bell.  See bell.h.
 */

#include "config.h"

#include "base/clock.h"
#include "mirror/engine/bell.h"
#include "mirror/engine/engine.h"

/* It looks this often without being woken: while guest writes wait for us, and otherwise. */
#define LOOK_NS NS_PER_S
#define SLEEP_NS (600 * NS_PER_S)

static void *
listen_to_it (void *opaque)
{
  struct bell *b = opaque;
  struct region *r = b->engine->region;
  uint32_t seen = urgent_bell (r) - 1, last;

  while (!atomic_load (&b->stop)) {
    last = seen;
    seen = urgent_bell (r);
    bool synchronous = atomic_load (&b->engine->synchronous);
    /* "Synchronised" may be lost without a ring: a flush of the guest was not waited for. */
    bool behind
        = synchronous && atomic_load (&r->hdr->synced_epoch) != atomic_load (&r->hdr->sync_epoch);
    if (seen != last || urgent_any (r) || behind)
      engine_rung (b->engine);
    urgent_sleep (r, seen, synchronous ? LOOK_NS : SLEEP_NS);
  }
  return NULL;
}

void
bell_start (struct bell *b, struct engine *e)
{
  b->engine = e;
  atomic_store (&b->stop, false);
  b->running = pthread_create (&b->thread, NULL, listen_to_it, b) == 0;
  engine_set_watched (e, b->running);
}

void
bell_stop (struct bell *b)
{
  if (!b->running)
    return;
  engine_set_watched (b->engine, false);
  atomic_store (&b->stop, true);
  urgent_ring (b->engine->region);
  pthread_join (b->thread, NULL);
  b->running = false;
}
