/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * WORK_ZERO: a claimed run that was said to be zero when it was not claimed yet, up to 1 GiB.
 * The task goes on from state to state until all of it is done.
 *
 *   state      what is going on                     next
 *   CHECKING   the source's block status was asked  zero: COMPARING or WRITING, for so much of it
 *              for again, after the claim (R8)      not zero: these blocks are dirty again
 *   COMPARING  the destination's block status was   zero: left alone
 *              asked; only while the engine's       not zero: WRITING
 *              may_skip is set (R8)
 *   WRITING    one write of zeroes is in flight     WRITING, COMPARING or CHECKING
 *
 * In each state the slot may wait for room in the channel instead.
 */

#include "config.h"

#include <errno.h>
#include <string.h>

#include "mirror/engine/slot-zeroes.h"

/* A server may have to write the zeroes out, for all slots at the same time, within the time limit
 * of a request. */
#define MAX_ZERO_REQUEST (UINT64_C (32) << 20)
#define MAX_STATUS_REQUEST (UINT64_C (2) << 30)

static void step (struct slot *sl);

static void
finish (struct slot *sl)
{
  static const uint8_t zeroes[SAMPLE_BYTES];
  engine_task_done (sl->of->engine, &sl->task, zeroes, sizeof zeroes);
  slot_end (sl);
}

/* ---- writing ---- */

static void
on_written (void *opaque, int err)
{
  struct slot *sl = opaque;
  if (err) {
    slot_dest_failed (sl, "write of zeroes", err);
    return;
  }
  engine_progress (sl->of->engine);
  step (sl);
}

/* Send *LEN bytes of zeroes as such, or fewer.  As channel_zero(). */
static int
send_as_zeroes (struct slot *sl, uint64_t *len)
{
  uint64_t offset = sl->offset + sl->zeroes.pos;

  if (*len > MAX_ZERO_REQUEST)
    *len = MAX_ZERO_REQUEST;
  *len -= *len % sl->of->target->min_block;
  atomic_fetch_add (&sl->of->engine->region->hdr->zero_bytes, *len);
  return channel_zero (sl->of->dest, *len, offset, on_written, sl);
}

/* The same, as data.  As channel_write(). */
static int
send_as_data (struct slot *sl, uint64_t *len)
{
  const struct engine *e = sl->of->engine;
  const struct target *target = sl->of->target;
  uint64_t max = e->request_blocks << e->region->geo.block_shift;

  if (max > endpoint_info (target->endpoint)->max_request)
    max = endpoint_info (target->endpoint)->max_request;
  if (*len > max)
    *len = max;
  memset (sl->buf, 0, *len);
  uint64_t pad = *len % target->min_block ? target->tail_pad_len : 0;
  if (pad)
    memcpy (sl->buf + *len, target->tail_pad, pad);
  atomic_fetch_add (&e->region->hdr->sent_bytes, *len);
  return channel_write (sl->of->dest, sl->buf, (uint32_t)(*len + pad), sl->offset + sl->zeroes.pos,
                        on_written, sl);
}

/* Make the destination zero from pos on, up to write_end, one request at a time. */
static void
write_some (struct slot *sl)
{
  struct slot_zeroes *z = &sl->zeroes;
  const struct target *target = sl->of->target;
  uint64_t len = z->write_end - z->pos;

  z->state = ZEROES_WRITING;
  int r = endpoint_info (target->endpoint)->can_zero && len >= target->min_block
              ? send_as_zeroes (sl, &len)
              : send_as_data (sl, &len);
  if (r == -1) {
    slot_dest_failed (sl, "write of zeroes", errno);
    return;
  }
  atomic_fetch_add (&sl->of->engine->counters.extent_bytes, len);
  z->pos += len;
}

/* ---- asking ---- */

/* How many bytes from the answer's beginning are of one kind. */
static uint64_t
leading (const struct endpoint_extent *x, unsigned nr, bool *zero)
{
  uint64_t n = 0;
  *zero = x[0].zero;
  for (unsigned i = 0; i < nr && x[i].zero == *zero; i++)
    n += x[i].length;
  return n;
}

static void
on_dest_status (void *opaque, int err, const struct endpoint_extent *x, unsigned nr)
{
  struct slot *sl = opaque;
  struct slot_zeroes *z = &sl->zeroes;
  struct engine *e = sl->of->engine;
  bool zero = false;
  uint64_t n = z->zero_end - z->pos;

  if (channel_error (sl->of->dest) != NULL) {
    slot_dest_failed (sl, "block status", err ? err : ESHUTDOWN);
    return;
  }
  if (!err) {
    uint64_t same = leading (x, nr, &zero);
    if (same < n)
      n = same;
  }
  if (zero) {
    z->pos += n;
    if (!endpoint_info (sl->of->target->endpoint)->can_zero)
      engine_refund (e, n); /* engine_next() has charged for it */
    atomic_fetch_add (&e->counters.skipped_bytes, n);
    atomic_fetch_add (&e->counters.extent_bytes, n);
  } else
    z->write_end = z->pos + n;
  step (sl);
}

/* Give the blocks from pos on back as dirty, as far as N bytes reach into them. */
static void
give_back_some (struct slot *sl, uint64_t n)
{
  struct slot_zeroes *z = &sl->zeroes;
  struct region *r = sl->of->engine->region;
  uint64_t end = sl->offset + z->pos + n;
  if (end > sl->offset + sl->length)
    end = sl->offset + sl->length;
  uint64_t b0 = (sl->offset + z->pos) >> r->geo.block_shift;
  uint64_t b1 = ((end - 1) >> r->geo.block_shift) + 1;

  claim_give_back (r, sl->task.set, b0, b1 - b0);
  z->pos += region_bytes (&r->geo, b0, b1 - b0);
  z->zero_end = z->write_end = z->pos;
}

static void
on_source_status (void *opaque, int err, const struct endpoint_extent *x, unsigned nr)
{
  struct slot *sl = opaque;
  struct slot_zeroes *z = &sl->zeroes;
  const struct region_geometry *geo = &sl->of->engine->region->geo;
  uint64_t left = sl->length - z->pos;

  if (atomic_load (&sl->of->target->stop))
    err = ESHUTDOWN;
  if (err) {
    give_back_some (sl, left);
  } else {
    bool zero;
    uint64_t n = leading (x, nr, &zero);
    if (n > left)
      n = left;
    /* Whole blocks only.  The task's end is a block's end, or the disk's. */
    uint64_t whole = n == left ? n : n & ~(uint64_t)(geo->block_size - 1);
    if (zero && whole > 0)
      z->zero_end = z->pos + whole;
    else
      give_back_some (sl, n);
  }
  step (sl);
}

static void
ask_source (struct slot *sl)
{
  struct slot_zeroes *z = &sl->zeroes;
  uint64_t n = sl->length - z->pos;

  z->state = ZEROES_CHECKING;
  if (n > MAX_STATUS_REQUEST)
    n = MAX_STATUS_REQUEST;
  if (channel_status (sl->of->source, n, sl->offset + z->pos, on_source_status, sl) == 0)
    return;
  if (errno == EAGAIN) {
    slot_wait_for_room (sl, step);
    return;
  }
  give_back_some (sl, sl->length - z->pos);
  finish (sl);
}

static void
ask_dest (struct slot *sl)
{
  struct slot_zeroes *z = &sl->zeroes;

  z->state = ZEROES_COMPARING;
  if (channel_status (sl->of->dest, z->zero_end - z->pos, sl->offset + z->pos, on_dest_status, sl)
      == -1)
    slot_dest_failed (sl, "block status", errno);
}

/* May the destination's own block status excuse us from writing these zeroes (R8)? */
static bool
may_skip (const struct slot *sl)
{
  const struct target *target = sl->of->target;
  return atomic_load (&sl->of->engine->may_skip) && endpoint_info (target->endpoint)->can_status
         && (sl->zeroes.zero_end - sl->zeroes.pos) % target->min_block == 0;
}

/* What comes next?  pos <= write_end <= zero_end <= length; or write_end < pos, and then it is not
 * known yet whether the destination must be written. */
static void
step (struct slot *sl)
{
  struct slot_zeroes *z = &sl->zeroes;

  if (z->pos == sl->length)
    finish (sl);
  else if (z->pos == z->zero_end)
    ask_source (sl);
  else if (channel_room (sl->of->dest) == 0)
    slot_wait_for_room (sl, step);
  else if (z->write_end <= z->pos && may_skip (sl))
    ask_dest (sl);
  else {
    if (z->write_end <= z->pos)
      z->write_end = z->zero_end;
    write_some (sl);
  }
}

void
slot_zeroes_start (struct slot *sl)
{
  slot_begin (sl);
  sl->zeroes = (struct slot_zeroes){ 0 };
  step (sl);
}
