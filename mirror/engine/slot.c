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
#define FEW 4u /* slots, which are the same ones each time: to get their memory anew costs 1 ms */

/* ---- all slots of a copier ---- */

/* A quarter of the memory is for short requests, at most.  A quarter of the long buffers are second
 * ones: what is in quarantine is read back into them, and over a long line that takes many requests
 * in flight as well.  FOR_EACH: every slot compares what it copies with something else, so each has
 * a second buffer.  Only buffers that the window lets be used take memory. */
static struct slots_division
divide (size_t memory, unsigned nr_copiers, size_t long_bytes, size_t short_bytes, bool for_each)
{
  struct slots_division d = { .nr_short = 0 };

  if (for_each) {
    size_t pairs = memory / long_bytes / 2;
    d.nr_long = pairs < 2 ? 2 : pairs > ENGINE_MAX_SECONDS ? ENGINE_MAX_SECONDS : (unsigned)pairs;
    d.nr_seconds = d.nr_long;
    return d;
  }
  if (short_bytes > 0)
    d.nr_short = (unsigned)(memory / 4 / short_bytes);
  if (d.nr_short > ENGINE_SHORT_SLOTS / nr_copiers)
    d.nr_short = ENGINE_SHORT_SLOTS / nr_copiers;
  size_t fit = (memory - d.nr_short * short_bytes) / long_bytes;
  size_t seconds = fit < 8 ? 1 : fit / 4;
  d.nr_seconds = seconds > ENGINE_MAX_SECONDS ? ENGINE_MAX_SECONDS : (unsigned)seconds;
  size_t rest = fit < 3 ? 2 : fit - d.nr_seconds;
  d.nr_long = rest < ENGINE_MAX_DEPTH ? (unsigned)rest : ENGINE_MAX_DEPTH;
  return d;
}

/* Does every slot compare what it copies? */
static bool
compares (enum engine_sync sync)
{
  return sync >= ENGINE_SYNC_BASE;
}

struct slots_division
slots_of_session (unsigned nr_copiers, uint32_t block_size, enum engine_sync sync)
{
  size_t request = block_size > ENGINE_REQUEST_BYTES ? block_size : ENGINE_REQUEST_BYTES;
  bool for_each = compares (sync), no_short = for_each || block_size > ENGINE_SHORT_BYTES;
  struct slots_division d
      = divide (ENGINE_BUFFER_BYTES / nr_copiers, nr_copiers, request + ALIGNMENT,
                no_short ? 0 : ENGINE_SHORT_BYTES, for_each);

  d.nr_long *= nr_copiers;
  d.nr_short *= nr_copiers;
  d.nr_seconds *= nr_copiers;
  return d;
}

/* Make NR slots from SL on, each with one of the BUFFERS of BYTES.  Returns the list of them. */
static struct slot *
make_list (struct slots *ss, struct slot *sl, unsigned nr, bool is_short, uint8_t *buffers,
           size_t bytes)
{
  uint32_t size = is_short ? ss->short_size : ss->long_size;
  struct slot *list = NULL;

  for (unsigned i = nr; i-- > 0;) {
    sl[i] = (struct slot){
      .of = ss, .buf = buffers + i * bytes, .size = size, .is_short = is_short, .next = list
    };
    list = &sl[i];
  }
  ss->nr += nr;
  return list;
}

uint32_t
slots_unit (const struct engine *e, const struct target *target)
{
  uint64_t request = e->request_blocks << e->region->geo.block_shift;
  uint32_t unit = ALIGNMENT;

  while (unit < target->min_block || unit * UINT64_C (64) < request)
    unit *= 2;
  return unit;
}

int
slots_init (struct slots *ss, struct engine *e, struct target *target, unsigned nr_copiers)
{
  uint32_t request = (uint32_t)(e->request_blocks << e->region->geo.block_shift);
  bool tail = e->region->geo.disk_size % target->min_block != 0;
  bool for_each = compares (e->options.sync);
  bool no_short = for_each || e->region->geo.block_size > ENGINE_SHORT_BYTES
                  || target->min_block > ENGINE_SHORT_BYTES || request <= ENGINE_SHORT_BYTES;

  *ss = (struct slots){ .engine = e,
                        .target = target,
                        .long_size = request,
                        .short_size = no_short ? 0 : ENGINE_SHORT_BYTES };
  ss->unit = slots_unit (e, target);
  /* Each long buffer has room for the destination's minimum block behind an odd tail, or the
   * base's.  Short ones have it only where the disk has such a tail. */
  uint32_t base_block = e->options.base ? endpoint_info (e->options.base)->min_block : 1;
  uint32_t pad = target->min_block > ALIGNMENT ? target->min_block : ALIGNMENT;
  if (base_block > pad)
    pad = base_block;
  size_t long_bytes = ((size_t)request + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT + pad;
  size_t short_bytes = no_short ? 0 : ENGINE_SHORT_BYTES + (tail ? pad : 0);
  const struct slots_division d
      = divide (ENGINE_BUFFER_BYTES / nr_copiers, nr_copiers, long_bytes, short_bytes, for_each);
  size_t first = (d.nr_long + d.nr_seconds) * long_bytes;

  ss->slots = calloc (d.nr_long + d.nr_short, sizeof *ss->slots);
  if (ss->slots == NULL)
    return -1;
  ss->buffers_size = first + d.nr_short * short_bytes;
  ss->buffers = buffers_new (ss->buffers_size);
  if (ss->buffers == NULL) {
    errno = ENOMEM;
    return -1;
  }
  ss->free_long = make_list (ss, ss->slots, d.nr_long, false, ss->buffers, long_bytes);
  ss->free_short
      = make_list (ss, ss->slots + d.nr_long, d.nr_short, true, ss->buffers + first, short_bytes);
  for (unsigned i = 0; i < d.nr_seconds; i++)
    ss->seconds[ss->nr_seconds++] = ss->buffers + (d.nr_long + i) * long_bytes;
  windows_init (&ss->windows, target->lowest, request, ss->short_size, ENGINE_DEPTH, d.nr_long,
                d.nr_short);
  return 0;
}

void
slots_destroy (struct slots *ss)
{
  free (ss->buffers);
  free (ss->slots);
}

void
slots_rest (struct slots *ss)
{
  if (ss->nr_active > 0)
    return;
  if (ss->most_active > FEW)
    buffers_rest (ss->buffers, ss->buffers_size);
  ss->most_active = 0;
}

struct slot *
slots_find_free (struct slots *ss, uint64_t length)
{
  if (length <= ss->short_size && ss->free_short != NULL)
    return ss->free_short;
  return ss->free_long;
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
  struct slots *ss = sl->of;
  struct slot **list = sl->is_short ? &ss->free_short : &ss->free_long;

  assert (*list == sl && !sl->in_use && sl->second == NULL);
  *list = sl->next;
  sl->next = NULL;
  sl->in_use = true;
  ss->nr_active++;
  if (ss->nr_active > ss->most_active)
    ss->most_active = ss->nr_active;
  ss->nr_urgent += sl->task.urgent;
  if (!sl->task.urgent)
    windows_add (&ss->windows, &ss->active, sl->length);
}

void
slot_end (struct slot *sl)
{
  struct slots *ss = sl->of;
  if (sl->second != NULL)
    ss->seconds[ss->nr_seconds++] = sl->second;
  sl->second = NULL;
  ss->nr_active--;
  ss->nr_urgent -= sl->task.urgent;
  if (!sl->task.urgent)
    windows_remove (&ss->windows, &ss->active, sl->length);
  sl->in_use = false;
  struct slot **list = sl->is_short ? &ss->free_short : &ss->free_long;
  sl->next = *list;
  *list = sl;
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
        = sl->length == 0
              ? text_printf ("%s: %s: %s", name, what, strerror (err))
              : text_printf ("%s: %s of %" PRIu64 " bytes at offset %" PRIu64 ": %s%s", name, what,
                             sl->length, sl->offset, strerror (err),
                             err == ENOSPC || err == EDQUOT ? " (make room there)" : "");
    if (endpoint_error_lasts (err))
      atomic_store (&target->refused_with, err);
    target->fail (target->opaque, why);
  }
  slot_end (sl);
}
