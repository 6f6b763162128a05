/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The difference, by the source's layers, by reading and by digests.  See difference.h.
 */

#include "config.h"

#include <errno.h>
#include <string.h>

#include "mirror/engine/difference.h"

struct difference_ops {
  enum difference_look when;
  bool costs;
  void (*begin) (struct slot *sl);
  void (*end) (struct slot *sl);
};

static const struct difference_ops difference_ops[], by_digests;

static const struct difference_ops *
ops_of (const struct slot *sl)
{
  return sl->of->target->digests != NULL ? &by_digests
                                         : &difference_ops[sl->of->engine->options.sync];
}

/* ---- by reading ---- */

static void read_some (struct slot *sl);

static void
on_read (void *opaque, int err)
{
  struct slot *sl = opaque;

  if (err) {
    sl->data.look_failed = true;
    sl->data.looked (sl);
  } else
    read_some (sl);
}

/* Read on from CH, a channel to the endpoint of INFO, until the second buffer holds what it has of
 * the run.  What lies behind its end counts as zero. */
static void
read_from (struct slot *sl, struct channel *ch, const struct endpoint_info *info)
{
  struct slot_data *d = &sl->data;
  uint64_t at = sl->offset + d->look_pos, n = sl->length - d->look_pos;

  if (n > 0 && at >= info->size) {
    memset (sl->second + d->look_pos, 0, n);
    n = 0;
  }
  if (n == 0) {
    d->looked (sl);
    return;
  }
  if (n > info->max_request)
    n = info->max_request;
  if (n > info->size - at)
    n = info->size - at;
  uint64_t rounded = endpoint_round_up (info, n);
  d->look_pos += n;
  if (channel_read (ch, sl->second + (at - sl->offset), (uint32_t)rounded, at, on_read, sl) == 0)
    return;
  if (errno == EAGAIN) { /* others have started meanwhile */
    d->look_pos -= n;
    slot_wait_for_room (sl, read_some);
  } else
    on_read (sl, errno);
}

static void
read_some (struct slot *sl)
{
  const struct slots *ss = sl->of;
  struct endpoint *base = ss->engine->options.base;

  if (base != NULL)
    read_from (sl, ss->beside, endpoint_info (base));
  else
    read_from (sl, ss->dest, endpoint_info (ss->target->endpoint));
}

static void
begin_reading (struct slot *sl)
{
  slot_take_second (sl);
  read_some (sl);
}

static void
compare_buffers (struct slot *sl)
{
  const uint64_t unit = sl->of->unit;

  for (uint64_t at = 0; at < sl->length; at += unit) {
    uint64_t n = sl->length - at < unit ? sl->length - at : unit;
    if (memcmp (sl->buf + at, sl->second + at, n) == 0)
      sl->data.same |= UINT64_C (1) << at / unit;
  }
}

/* ---- by digests ---- */

/* A slot has at most 64 units (slots_unit()). */
#define UNITS 64

static void
on_digests (void *opaque, int err)
{
  struct slot *sl = opaque;

  sl->data.look_failed = err != 0;
  sl->data.looked (sl);
}

/* The digest export has the digests of all blocks one behind the other. */
static void
begin_digests (struct slot *sl)
{
  const struct digest_key *key = &sl->of->target->key;
  uint32_t n = (uint32_t)digest_count (key, sl->length) * DIGEST_SIZE;

  slot_take_second (sl);
  if (channel_read (sl->of->beside, sl->second, n, sl->offset / key->block * DIGEST_SIZE,
                    on_digests, sl)
      == 0)
    return;
  if (errno == EAGAIN)
    slot_wait_for_room (sl, begin_digests);
  else
    on_digests (sl, errno);
}

static void
compare_digests (struct slot *sl)
{
  const struct digest_key *key = &sl->of->target->key;
  uint8_t ours[UNITS * DIGEST_SIZE];

  digest_blocks (key, sl->buf, sl->length, ours);
  for (uint64_t u = 0; u < digest_count (key, sl->length); u++)
    if (memcmp (ours + u * DIGEST_SIZE, sl->second + u * DIGEST_SIZE, DIGEST_SIZE) == 0)
      sl->data.same |= UINT64_C (1) << u;
}

/* ---- by the source's layers ---- */

static void ask_some (struct slot *sl);

/* A lower layer holds the bytes from same_from up to END (relative). */
static void
same_up_to (struct slot *sl, uint64_t end)
{
  const uint64_t unit = sl->of->unit;
  uint64_t first = (sl->data.same_from + unit - 1) / unit;

  for (uint64_t u = first; (u + 1) * unit <= end || (end == sl->length && u * unit < end); u++)
    sl->data.same |= UINT64_C (1) << u;
}

static void
on_layers (void *opaque, int err, const struct endpoint_extent *x, unsigned nr)
{
  struct slot *sl = opaque;
  struct slot_data *d = &sl->data;

  for (unsigned i = 0; i < nr && d->look_pos < sl->length; i++) {
    uint64_t left = sl->length - d->look_pos;
    d->look_pos += x[i].length < left ? x[i].length : left;
    if (x[i].lower)
      same_up_to (sl, d->look_pos);
    else
      d->same_from = d->look_pos;
  }
  if (err)
    d->look_failed = true;
  if (err || d->look_pos == sl->length)
    d->looked (sl);
  else
    ask_some (sl);
}

static void
ask_some (struct slot *sl)
{
  uint64_t n = sl->length - sl->data.look_pos;

  if (channel_status (sl->of->source, n, sl->offset + sl->data.look_pos, on_layers, sl) == 0)
    return;
  if (errno == EAGAIN)
    slot_wait_for_room (sl, ask_some);
  else
    on_layers (sl, errno, NULL, 0);
}

/* The answers were taken in as they came. */
static void
nothing_more (struct slot *sl)
{
  (void)sl;
}

/* ---- all kinds ---- */

static const struct difference_ops difference_ops[] = {
  [ENGINE_SYNC_FULL] = { .when = DIFFERENCE_NO_LOOK },
  [ENGINE_SYNC_INCREMENTAL] = { .when = DIFFERENCE_NO_LOOK },
  [ENGINE_SYNC_TOP] = { .when = DIFFERENCE_FIRST, .begin = ask_some, .end = nothing_more },
  [ENGINE_SYNC_BASE]
  = { .when = DIFFERENCE_BESIDE, .begin = begin_reading, .end = compare_buffers },
  [ENGINE_SYNC_COMPARE]
  = { .when = DIFFERENCE_BESIDE, .costs = true, .begin = begin_reading, .end = compare_buffers },
};

static const struct difference_ops by_digests
    = { .when = DIFFERENCE_BESIDE, .begin = begin_digests, .end = compare_digests };

/* The first block from FIRST on that is visited, or END. */
static uint64_t
unvisited_end (const struct region *r, uint64_t first, uint64_t end)
{
  uint64_t found;
  return bitmap_next_set (r, REGION_VISITED, first, end, &found) ? found : end;
}

enum difference_look
difference_when (const struct slot *sl)
{
  const struct region *r = sl->of->engine->region;
  uint64_t first = sl->task.first, end = first + sl->task.count;

  /* A guest waits for an urgent block, which it has just written: that is not worth a look. */
  if (sl->task.urgent || ops_of (sl)->when == DIFFERENCE_NO_LOOK)
    return DIFFERENCE_NO_LOOK;
  for (uint64_t b = first; b < end; b++)
    if (!bitmap_test (r, REGION_VISITED, b))
      return ops_of (sl)->when;
  return DIFFERENCE_NO_LOOK;
}

void
difference_begin (struct slot *sl, void (*done) (struct slot *sl))
{
  sl->data.look_pos = sl->data.same_from = 0;
  sl->data.look_failed = false;
  sl->data.looked = done;
  ops_of (sl)->begin (sl);
}

void
difference_end (struct slot *sl)
{
  const struct region *r = sl->of->engine->region;
  uint64_t end = sl->task.first + sl->task.count;

  if (sl->data.look_failed) {
    sl->data.same = 0;
    return;
  }
  ops_of (sl)->end (sl);
  /* Visited blocks are sent whatever they hold. */
  for (uint64_t at = 0; at < sl->length; at += sl->of->unit) {
    uint64_t b = (sl->offset + at) >> r->geo.block_shift;
    uint64_t last = (sl->offset + at + sl->of->unit - 1) >> r->geo.block_shift;
    if (last >= end)
      last = end - 1;
    if (unvisited_end (r, b, last + 1) != last + 1)
      sl->data.same &= ~(UINT64_C (1) << at / sl->of->unit);
  }
}

bool
difference_costs (const struct slot *sl)
{
  return ops_of (sl)->costs;
}
