/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A copier's thread.  See copier.h.
 */

#include "config.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fd.h"
#include "mirror/endpoint/buffers.h"
#include "mirror/engine/copier.h"

#define ALIGNMENT 4096u
#define MAX_WAIT_NS UINT64_C (1000000000)

int
copier_init (struct copier *c, struct session *s, unsigned index)
{
  struct engine *e = s->engine;

  c->session = s;
  c->engine = e;
  c->index = index;
  c->wake_fd = fd_wake_new ();
  if (c->wake_fd == -1)
    return -1;

  /* Room for the destination's minimum block behind an odd tail. */
  size_t request = (size_t)e->request_blocks << e->region->geo.block_shift;
  c->buffer_size = request + (s->min_block > ALIGNMENT ? s->min_block : ALIGNMENT);
  size_t fit = ENGINE_BUFFER_BYTES / s->nr_copiers / c->buffer_size;
  /* One to read back into for four to write from: what is in quarantine gets a quarter of the slots
   * at most. */
  size_t readbacks = fit < 10 ? 1 : fit / 5;
  c->nr_slots = fit < 3                          ? 2
                : fit - readbacks < ENGINE_DEPTH ? (unsigned)(fit - readbacks)
                                                 : ENGINE_DEPTH;
  if (readbacks > ENGINE_DEPTH / 4)
    readbacks = ENGINE_DEPTH / 4;
  window_init (&c->window, c->nr_slots);

  c->slots = calloc (c->nr_slots, sizeof *c->slots);
  if (c->slots == NULL)
    return -1;
  c->buffers = buffers_new ((c->nr_slots + readbacks) * c->buffer_size);
  if (c->buffers == NULL) {
    errno = ENOMEM;
    return -1;
  }
  for (unsigned i = 0; i < c->nr_slots; i++) {
    c->slots[i].c = c;
    c->slots[i].buf = c->buffers + i * c->buffer_size;
  }
  for (c->nr_readbacks = 0; c->nr_readbacks < readbacks; c->nr_readbacks++)
    c->readbacks[c->nr_readbacks] = c->buffers + (c->nr_slots + c->nr_readbacks) * c->buffer_size;
  return 0;
}

/* Closing completes what is in flight, into slots that still exist. */
static void
close_channels (struct copier *c)
{
  if (c->dest)
    channel_close (c->dest);
  if (c->source)
    channel_close (c->source);
  c->dest = c->source = NULL;
}

void
copier_destroy (struct copier *c)
{
  close_channels (c);
  free (c->buffers);
  free (c->slots);
  if (c->wake_fd > 0)
    close (c->wake_fd);
}

void
copier_wake (struct copier *c)
{
  fd_wake (c->wake_fd);
}

static struct slot *
free_slot (struct copier *c)
{
  for (unsigned i = 0; i < c->nr_slots; i++)
    if (c->slots[i].state == SLOT_FREE)
      return &c->slots[i];
  return NULL;
}

/* What may be started.  While guest writes wait for us, half of the slots are for them and half for
 * the background, which they must not keep from getting on; and it queues no more at the
 * destination than that can use, for they would have to wait behind it. */
static struct engine_room
room (const struct copier *c)
{
  bool synchronous = atomic_load (&c->engine->synchronous);
  unsigned limit = c->at_once || synchronous ? c->window.depth : c->nr_slots;
  unsigned half = c->nr_slots / 2;
  struct engine_room r = { .flusher = c->index == 0, .verify = c->nr_readbacks > 0 };

  if (c->nr_active >= c->nr_slots)
    return r;
  if (!synchronous) {
    r.background = r.urgent = c->nr_active < limit;
    return r;
  }
  r.background
      = c->nr_active - c->nr_urgent < (limit < c->nr_slots - half ? limit : c->nr_slots - half);
  r.urgent = c->nr_urgent < half;
  return r;
}

/* Start as much as there is room for.  Returns for how long (ns) there is nothing more to start. */
static uint64_t
fill (struct copier *c)
{
  while (c->waiting == NULL && !atomic_load (&c->session->draining) && channel_room (c->source) > 0
         && channel_room (c->dest) > 0) {
    const struct engine_room r = room (c);
    if (!r.background && !r.urgent)
      break;
    struct slot *sl = free_slot (c);
    enum engine_work w = engine_next (c->engine, &r, &sl->task);
    if (w == WORK_NONE) /* a flush may be due long before a low limit lets the next request go */
      return sl->task.wait_ns < MAX_WAIT_NS ? sl->task.wait_ns : MAX_WAIT_NS;
    slot_start (sl, w);
    /* What is there already is sent on while it is in the processor's cache. */
    bool at_once = channel_run (c->source);
    if (w == WORK_DATA)
      c->at_once = at_once;
    if (atomic_load (&c->session->stop))
      break;
  }
  return MAX_WAIT_NS;
}

/* One turn: wait for something, handle it.  -1 when a channel is dead. */
static int
turn (struct copier *c, uint64_t wait_ns)
{
  struct pollfd fds[1 + 2 * CHANNEL_MAX_FDS];
  int timeout = (int)((wait_ns + 999999) / 1000000);

  fds[0] = (struct pollfd){ .fd = c->wake_fd, .events = POLLIN };
  unsigned ns = channel_pollfds (c->source, fds + 1, CHANNEL_MAX_FDS, &timeout);
  unsigned nd = channel_pollfds (c->dest, fds + 1 + ns, CHANNEL_MAX_FDS, &timeout);
  if (poll (fds, 1 + ns + nd, timeout) == -1 && errno != EINTR) {
    session_fail (c->session, strerror (errno));
    return -1;
  }
  if (fds[0].revents)
    fd_wake_clear (c->wake_fd);
  if (channel_dispatch (c->source, fds + 1, ns) == -1) {
    engine_fatal (c->engine, channel_error (c->source));
    return -1;
  }
  if (channel_dispatch (c->dest, fds + 1 + ns, nd) == -1) {
    session_fail (c->session, channel_error (c->dest));
    return -1;
  }
  return 0;
}

void *
copier_run (void *opaque)
{
  struct copier *c = opaque;

  while (!atomic_load (&c->session->stop)
         && !(atomic_load (&c->session->draining) && c->nr_active == 0)) {
    slot_send_waiting (c);
    uint64_t wait_ns = fill (c);
    if (atomic_load (&c->session->stop) || turn (c, wait_ns) == -1)
      break;
  }
  /* By each copier for itself: io_destroy() waits for all processors, tens of milliseconds. */
  close_channels (c);
  return NULL;
}
