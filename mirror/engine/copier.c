/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A copier's thread.  See copier.h.
 */

#include "config.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#include "base/clock.h"
#include "base/fd.h"
#include "mirror/engine/copier.h"
#include "mirror/engine/slot-data.h"
#include "mirror/engine/slot-flush.h"
#include "mirror/engine/slot-hints.h"
#include "mirror/engine/slot-zeroes.h"

#define MAX_WAIT_NS ((uint64_t)NS_PER_S)

int
copier_init (struct copier *c, struct engine *e, struct target *target, unsigned nr_copiers,
             bool flusher)
{
  *c = (struct copier){ .flusher = flusher };
  c->wake_fd = fd_wake_new ();
  if (c->wake_fd == -1)
    return -1;
  return slots_init (&c->slots, e, target, nr_copiers);
}

void
copier_close (struct copier *c)
{
  /* This one comes first: what it fails to answer is sent to the destination as a whole. */
  if (c->slots.beside)
    channel_close (c->slots.beside);
  if (c->slots.dest)
    channel_close (c->slots.dest);
  if (c->slots.source)
    channel_close (c->slots.source);
  c->slots.dest = c->slots.source = c->slots.beside = NULL;
}

void
copier_destroy (struct copier *c)
{
  slots_destroy (&c->slots);
  fd_close (&c->wake_fd);
}

void
copier_wake (struct copier *c)
{
  fd_wake (c->wake_fd);
}

/* What may be started.  While guest writes wait for us, half of the slots are for them and half for
 * the background, which they must not keep from getting on.  Then the background queues no more at
 * the destination than that can use, because guest writes would have to wait behind it. */
static struct engine_room
room (const struct copier *c)
{
  const struct slots *ss = &c->slots;
  bool synchronous = atomic_load (&ss->engine->synchronous);
  bool more = windows_filled (&ss->windows, &ss->sent) < 1
              && (windows_filled (&ss->windows, &ss->active) < 1
                  || (!c->at_once && !synchronous && ss->nr_active < ENGINE_DEPTH));
  struct engine_room r = { .flusher = c->flusher, .verify = ss->nr_seconds > 0 };

  if (ss->free_long == NULL && ss->free_short == NULL)
    return r;
  r.only_short = ss->free_long == NULL;
  if (!synchronous) {
    r.background = r.urgent = more;
    return r;
  }
  unsigned half = ss->nr / 2;
  r.background = more && ss->nr_active - ss->nr_urgent < ss->nr - half;
  r.urgent = ss->nr_urgent < half;
  return r;
}

/* Begin WORK in a free slot. */
static void
start (struct copier *c, enum engine_work work, const struct engine_task *task)
{
  const struct region_geometry *geo = &c->slots.engine->region->geo;
  bool buffer = work != WORK_FLUSH && work != WORK_ASK;
  uint64_t bytes = work != WORK_FLUSH ? region_bytes (geo, task->first, task->count) : 0;
  struct slot *sl = slots_find_free (&c->slots, buffer ? bytes : 0);

  sl->task = *task;
  sl->offset = task->first << geo->block_shift;
  sl->length = bytes;
  if (work == WORK_FLUSH)
    slot_flush_start (sl);
  else if (work == WORK_ZERO)
    slot_zeroes_start (sl);
  else if (work == WORK_ASK)
    slot_hints_start (sl);
  else
    slot_data_start (sl, work == WORK_VERIFY);
}

static bool
may_start (const struct copier *c)
{
  const struct slots *ss = &c->slots;
  return ss->waiting == NULL && !atomic_load (&ss->target->draining)
         && !atomic_load (&ss->target->stop) && channel_room (ss->source) > 0
         && channel_room (ss->dest) > 0 && (ss->beside == NULL || channel_room (ss->beside) > 0);
}

/* Start as much as there is room for.  Returns for how long (ns) there is nothing more to start. */
static uint64_t
fill (struct copier *c)
{
  while (may_start (c)) {
    const struct engine_room r = room (c);
    if (!r.background && !r.urgent)
      break;
    struct engine_task task;
    enum engine_work w = engine_next (c->slots.engine, &r, &task);
    if (w == WORK_NONE && task.rest_ns > MAX_WAIT_NS)
      slots_rest (&c->slots);
    if (w == WORK_NONE)
      return task.wait_ns;
    start (c, w, &task);
    /* What is there already is sent on while it is in the processor's cache. */
    bool at_once = channel_run (c->slots.source);
    if (w == WORK_DATA)
      c->at_once = at_once;
  }
  return MAX_WAIT_NS;
}

/* One turn: wait for something, and handle it.  -1 when a channel is dead. */
static int
turn (struct copier *c, uint64_t wait_ns)
{
  struct slots *ss = &c->slots;
  struct pollfd fds[1 + 3 * CHANNEL_MAX_FDS];
  int timeout = (int)((wait_ns + NS_PER_MS - 1) / NS_PER_MS);

  fds[0] = (struct pollfd){ .fd = c->wake_fd, .events = POLLIN };
  unsigned ns = channel_pollfds (ss->source, fds + 1, CHANNEL_MAX_FDS, &timeout);
  unsigned nd = channel_pollfds (ss->dest, fds + 1 + ns, CHANNEL_MAX_FDS, &timeout);
  unsigned nb
      = ss->beside ? channel_pollfds (ss->beside, fds + 1 + ns + nd, CHANNEL_MAX_FDS, &timeout) : 0;
  if (poll (fds, 1 + ns + nd + nb, timeout) == -1 && errno != EINTR) {
    ss->target->fail (ss->target->opaque, strerror (errno));
    return -1;
  }
  if (fds[0].revents)
    fd_wake_clear (c->wake_fd);
  if (channel_dispatch (ss->source, fds + 1, ns) == -1) {
    atomic_store (&ss->target->source_lost, true);
    ss->target->fail (ss->target->opaque, channel_error (ss->source));
    return -1;
  }
  if (ss->beside && channel_dispatch (ss->beside, fds + 1 + ns + nd, nb) == -1) {
    atomic_store (&ss->target->source_lost, ss->target->digests == NULL);
    ss->target->fail (ss->target->opaque, channel_error (ss->beside));
    return -1;
  }
  if (channel_dispatch (ss->dest, fds + 1 + ns, nd) == -1) {
    ss->target->fail (ss->target->opaque, channel_error (ss->dest));
    return -1;
  }
  uint64_t saved = channel_take_saved (ss->dest);
  if (saved > 0)
    engine_saved (ss->engine, saved);
  return 0;
}

void *
copier_run (void *opaque)
{
  struct copier *c = opaque;
  struct target *target = c->slots.target;

  while (!atomic_load (&target->stop)
         && !(atomic_load (&target->draining) && c->slots.nr_active == 0)) {
    slots_resume (&c->slots);
    uint64_t wait_ns = fill (c);
    if (atomic_load (&target->stop) || turn (c, wait_ns) == -1)
      break;
  }
  c->left = c->slots.nr_active; /* to close the channels completes them */
  /* Each copier does this for itself: to take a context of libaio down may take tens of
   * milliseconds (aio-pool.h). */
  copier_close (c);
  return NULL;
}
