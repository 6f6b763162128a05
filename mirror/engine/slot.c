/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What all kinds of tasks share.  See slot.h.
 */

#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "mirror/endpoint/buffers.h"
#include "mirror/engine/slot.h"

#define ALIGNMENT 4096u

/* ---- all slots of a copier ---- */

/* Divide the memory that fits into slots and second buffers.  Usually there is one second buffer
 * for four slots: what is in quarantine, and is read back into them, gets a quarter of the slots at
 * most.  FOR_EACH: every slot compares what it copies with something else. */
static void
divide_buffers (struct slots *ss, size_t fit, bool for_each)
{
  size_t seconds = for_each ? fit / 2 : fit < 10 ? 1 : fit / 5;

  if (for_each) {
    ss->nr = seconds < 2 ? 2 : seconds > ENGINE_DEPTH ? ENGINE_DEPTH : (unsigned)seconds;
    ss->nr_seconds = ss->nr;
    return;
  }
  if (fit < 3)
    ss->nr = 2;
  else if (fit - seconds < ENGINE_DEPTH)
    ss->nr = (unsigned)(fit - seconds);
  else
    ss->nr = ENGINE_DEPTH;
  ss->nr_seconds = seconds > ENGINE_DEPTH / 4 ? ENGINE_DEPTH / 4 : (unsigned)seconds;
}

int
slots_init (struct slots *ss, struct engine *e, struct target *target, unsigned nr_copiers)
{
  /* Each buffer has room for the destination's minimum block behind an odd tail. */
  size_t request = (size_t)e->request_blocks << e->region->geo.block_shift;
  uint32_t base_block = e->options.base ? endpoint_info (e->options.base)->min_block : 1;
  uint32_t pad = target->min_block > ALIGNMENT ? target->min_block : ALIGNMENT;

  if (base_block > pad)
    pad = base_block;
  *ss = (struct slots){ .engine = e, .target = target, .buffer_size = request + pad };
  for (ss->unit = ALIGNMENT; ss->unit < target->min_block || ss->unit * UINT64_C (64) < request;)
    ss->unit *= 2;
  divide_buffers (ss, ENGINE_BUFFER_BYTES / nr_copiers / ss->buffer_size,
                  e->options.sync >= ENGINE_SYNC_BASE);
  window_init (&ss->window, ss->nr);
  ss->slots = calloc (ss->nr, sizeof *ss->slots);
  if (ss->slots == NULL)
    return -1;
  ss->buffers = buffers_new ((ss->nr + ss->nr_seconds) * ss->buffer_size);
  if (ss->buffers == NULL) {
    errno = ENOMEM;
    return -1;
  }
  for (unsigned i = 0; i < ss->nr; i++) {
    ss->slots[i].of = ss;
    ss->slots[i].buf = ss->buffers + i * ss->buffer_size;
  }
  for (unsigned i = 0; i < ss->nr_seconds; i++)
    ss->seconds[i] = ss->buffers + (ss->nr + i) * ss->buffer_size;
  return 0;
}

void
slots_destroy (struct slots *ss)
{
  free (ss->buffers);
  free (ss->slots);
}

struct slot *
slots_find_free (struct slots *ss)
{
  for (unsigned i = 0; i < ss->nr; i++)
    if (!ss->slots[i].in_use)
      return &ss->slots[i];
  return NULL;
}

void
slots_resume (struct slots *ss)
{
  /* The list is gone through once: some of the slots may come back into it. */
  struct slot *list = ss->waiting;
  ss->waiting = NULL;
  while (list) {
    struct slot *sl = list;
    list = sl->next;
    sl->resume (sl);
  }
}

/* ---- one slot ---- */

void
slot_begin (struct slot *sl)
{
  assert (!sl->in_use && sl->second == NULL);
  sl->in_use = true;
  sl->of->nr_active++;
  sl->of->nr_urgent += sl->task.urgent;
}

void
slot_end (struct slot *sl)
{
  struct slots *ss = sl->of;
  if (sl->second != NULL)
    ss->seconds[ss->nr_seconds++] = sl->second;
  sl->second = NULL;
  ss->nr_urgent -= sl->task.urgent;
  ss->nr_active--;
  sl->in_use = false;
}

void
slot_take_second (struct slot *sl)
{
  if (sl->second != NULL)
    return;
  assert (sl->of->nr_seconds > 0);
  sl->second = sl->of->seconds[--sl->of->nr_seconds];
}

void
slot_wait_for_room (struct slot *sl, void (*resume) (struct slot *))
{
  struct slot **p = &sl->of->waiting;
  while (*p)
    p = &(*p)->next;
  sl->next = NULL;
  sl->resume = resume;
  *p = sl;
}

void
slot_dest_failed (struct slot *sl, const char *what, int err)
{
  struct target *target = sl->of->target;
  const char *name = endpoint_name (target->endpoint);

  /* A dead channel has the better explanation, and the copier reports it.  ERR does not tell: a
   * server that shuts down answers ESHUTDOWN on a connection that lives. */
  if (channel_error (sl->of->dest) == NULL) {
    CLEANUP_TEXT char *why
        = sl->length == 0 ? text_printf ("%s: %s: %s", name, what, strerror (err))
                          : text_printf ("%s: %s of %" PRIu64 " bytes at offset %" PRIu64 ": %s",
                                         name, what, sl->length, sl->offset, strerror (err));
    if (endpoint_error_lasts (err))
      atomic_store (&target->refused_with, err);
    target->fail (target->opaque, why);
  }
  slot_end (sl);
}
