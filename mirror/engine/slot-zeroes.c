/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * WORK_ZERO: a claimed run that was said to be zero, or in a lower layer (difference.h), when it
 * was not claimed yet, up to 1 GiB. The task goes on from state to state until all of it is done.
 *
 *   state      what is going on                     next
 *   CHECKING   the source's block status was asked  zero: COMPARING or WRITING, for so much of it
 *              for again, after the claim (R8)      in a lower layer, and never visited: left alone
 *                                                   else: these blocks are dirty again
 *   COMPARING  the destination's block status was   zero: left alone
 *              asked; only about blocks that were   not zero: WRITING, or READING in the mode
 *              never visited (R8)                   `compare`
 *   READING    it is read from the destination,     zero: left alone
 *              which may hold zeroes all the same   not zero: WRITING
 *   WRITING    one write of zeroes is in flight     what comes next in the run
 *
 * In each state the slot may wait for room in the channel instead.
 */

#include "config.h"

#include <errno.h>
#include <string.h>

#include "base/zero.h"
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
  /* A block that was left to a lower layer is no sample: nobody has seen it. */
  engine_task_done (sl->of->engine, &sl->task, zeroes, sl->zeroes.unseen ? 0 : sizeof zeroes,
                    sl->zeroes.sent ? SAMPLE_SENT : SAMPLE_FOUND);
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
  return sl->zeroes.allocated ? channel_zero_allocated (sl->of->dest, *len, offset, on_written, sl)
                              : channel_zero (sl->of->dest, *len, offset, on_written, sl);
}

/* The same, as data.  As channel_write(). */
static int
send_as_data (struct slot *sl, uint64_t *len)
{
  const struct engine *e = sl->of->engine;
  const struct target *target = sl->of->target;
  uint64_t max = sl->size;

  if (max > endpoint_info (target->endpoint)->max_request)
    max = endpoint_info (target->endpoint)->max_request;
  if (*len > max)
    *len = max;
  memset (sl->buf, 0, *len);
  /* Behind the disk's odd end goes what the destination has there. */
  uint64_t end = sl->offset + sl->zeroes.pos + *len;
  uint64_t pad = end == e->region->geo.disk_size ? target->tail_pad_len : 0;
  if (pad)
    memcpy (sl->buf + *len, target->tail_pad, pad);
  atomic_fetch_add (&e->region->hdr->sent_bytes, *len);
  return channel_write (sl->of->dest, sl->buf, (uint32_t)(*len + pad), sl->offset + sl->zeroes.pos,
                        on_written, sl);
}

/* The blocks that N bytes from pos on reach into are going to be written. */
static void
mark_visited (struct slot *sl, uint64_t n)
{
  struct region *r = sl->of->engine->region;
  uint64_t at = sl->offset + sl->zeroes.pos;
  uint64_t b0 = at >> r->geo.block_shift, b1 = ((at + n - 1) >> r->geo.block_shift) + 1;

  bitmap_set (r, REGION_VISITED, b0, b1 - b0);
}

/* Make the destination zero from pos on, up to write_end, one request at a time. */
static void
write_some (struct slot *sl)
{
  struct slot_zeroes *z = &sl->zeroes;
  const struct target *target = sl->of->target;
  uint64_t len = z->write_end - z->pos;

  z->state = ZEROES_WRITING;
  z->sent = z->sent || z->pos == 0;
  engine_sends (sl->of->engine, &sl->task);
  mark_visited (sl, len);
  int r = endpoint_info (target->endpoint)->can_zero && len >= target->min_block
              ? send_as_zeroes (sl, &len)
              : send_as_data (sl, &len);
  if (r == -1) {
    slot_dest_failed (sl, "write of zeroes", errno);
    return;
  }
  atomic_fetch_add (&sl->of->engine->counters.passed_bytes, len);
  z->pos += len;
}

/* N bytes from pos on are zero at the destination already. */
static void
leave_alone (struct slot *sl, uint64_t n)
{
  struct engine *e = sl->of->engine;

  sl->zeroes.pos += n;
  if (!endpoint_info (sl->of->target->endpoint)->can_zero)
    engine_refund (e, n); /* engine_next() has charged for it */
  atomic_fetch_add (&e->region->hdr->skipped_bytes, n);
  atomic_fetch_add (&e->counters.passed_bytes, n);
}

/* ---- reading the destination ---- */

static void
on_dest_read (void *opaque, int err)
{
  struct slot *sl = opaque;
  struct slot_zeroes *z = &sl->zeroes;

  if (channel_error (sl->of->dest) != NULL) {
    slot_dest_failed (sl, "read", err ? err : ESHUTDOWN);
    return;
  }
  if (!err && all_zero (sl->buf, z->chunk))
    leave_alone (sl, z->chunk);
  else
    z->write_end = z->pos + z->chunk;
  step (sl);
}

/* Does the destination hold zeroes from pos on, up to read_end?  Read some of it. */
static void
read_some (struct slot *sl)
{
  struct slot_zeroes *z = &sl->zeroes;
  const struct engine *e = sl->of->engine;
  const struct endpoint_info *info = endpoint_info (sl->of->target->endpoint);
  uint64_t max = e->request_blocks << e->region->geo.block_shift;

  z->state = ZEROES_READING;
  if (max > info->max_request)
    max = info->max_request;
  z->chunk = z->read_end - z->pos < max ? z->read_end - z->pos : max;
  uint64_t n = endpoint_round_up (info, z->chunk);
  if (channel_read (sl->of->dest, sl->buf, (uint32_t)n, sl->offset + z->pos, on_dest_read, sl)
      == -1)
    slot_dest_failed (sl, "read", errno);
}

/* ---- asking ---- */

/* How many bytes from pos on, up to LIMIT, are in blocks that were all visited before, or all
 * never? */
static uint64_t
visited_run (const struct slot *sl, uint64_t limit, bool *visited)
{
  const struct region *r = sl->of->engine->region;
  uint64_t pos = sl->offset + sl->zeroes.pos, end = sl->offset + limit;
  uint64_t b0 = pos >> r->geo.block_shift, b1 = ((end - 1) >> r->geo.block_shift) + 1;
  uint64_t first = b1, count = 0;

  if (!bitmap_next_set (r, REGION_VISITED, b0, b1, &first))
    first = b1;
  *visited = first == b0;
  if (*visited && bitmap_next_run (r, REGION_VISITED, b0, b1 - b0, &first, &count))
    first += count;
  uint64_t run_end = first << r->geo.block_shift;
  return (run_end < end ? run_end : end) - pos;
}

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

/* N bytes from pos on are zero at the source, and it is not known that they are at the destination.
 */
static void
read_or_write (struct slot *sl, uint64_t n)
{
  struct slot_zeroes *z = &sl->zeroes;

  if (sl->of->engine->options.sync == ENGINE_SYNC_COMPARE)
    z->read_end = z->pos + n;
  else
    z->write_end = z->pos + n;
}

static void
on_dest_status (void *opaque, int err, const struct endpoint_extent *x, unsigned nr)
{
  struct slot *sl = opaque;
  struct slot_zeroes *z = &sl->zeroes;
  const uint32_t min_block = sl->of->target->min_block;
  bool zero = false;
  uint64_t n = z->chunk;

  if (channel_error (sl->of->dest) != NULL) {
    slot_dest_failed (sl, "block status", err ? err : ESHUTDOWN);
    return;
  }
  if (!err) {
    uint64_t same = leading (x, nr, &zero);
    if (zero && z->allocated)
      same = x[0].length;
    if (same < n)
      n = same - same % min_block;
  }
  if (n == 0) /* one block, of which a part is another kind */
    z->write_end = z->pos + min_block;
  else if (zero && z->allocated && !x[0].allocated)
    z->write_end = z->pos + n; /* they are zeroes, but the room is not there */
  else if (zero)
    leave_alone (sl, n);
  else
    read_or_write (sl, n);
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
}

/* N bytes of zeroes, whole blocks, begin at pos.  Are they to take up room at the destination?
 * Returns for how many of them the answer is the same.  A block that is partly a hole is none. */
static uint64_t
place (struct slot *sl, const struct endpoint_extent *x, unsigned nr, uint64_t n)
{
  const struct engine *e = sl->of->engine;
  const uint64_t block = e->region->geo.block_size;
  uint64_t same = 0;

  sl->zeroes.allocated = e->options.sparse == ENGINE_SPARSE_NEVER;
  if (e->options.sparse != ENGINE_SPARSE_AUTO)
    return n;
  for (unsigned i = 0; i < nr && x[i].allocated == x[0].allocated; i++)
    same += x[i].length;
  if (same >= n) {
    sl->zeroes.allocated = x[0].allocated;
    return n;
  }
  sl->zeroes.allocated = x[0].allocated || same < block;
  uint64_t whole = sl->zeroes.allocated ? (same + block - 1) / block * block : same / block * block;
  return whole < n ? whole : n;
}

/* The source says that N bytes from pos on, extents X, are all of the kind of X[0] (endpoint.h).
 * False if something must be asked or written next. */
static bool
take_run (struct slot *sl, const struct endpoint_extent *x, unsigned nr, uint64_t n)
{
  struct slot_zeroes *z = &sl->zeroes;
  const struct region_geometry *geo = &sl->of->engine->region->geo;
  /* Whole blocks only.  The task's end is a block's end, or the disk's. */
  uint64_t whole = z->pos + n == sl->length ? n : n & ~(uint64_t)(geo->block_size - 1);

  if (x->lower && whole > 0) {
    bool visited;
    uint64_t same = visited_run (sl, z->pos + whole, &visited);
    if (!visited) {
      z->unseen = z->unseen || z->pos == 0;
      leave_alone (sl, same);
      n -= same;
    }
  } else if (x->zero && whole > 0) {
    z->zero_end = z->pos + place (sl, x, nr, whole);
    return false;
  }
  if (n > 0)
    give_back_some (sl, n);
  return true;
}

/* What lies in a lower layer is one kind, whatever it reads as.  (pass.c divides it likewise.) */
static bool
same_kind (const struct endpoint_extent *a, const struct endpoint_extent *b)
{
  return a->lower == b->lower && (a->lower || a->zero == b->zero);
}

/* Take in the answer X, which begins at pos. */
static void
take_answer (struct slot *sl, const struct endpoint_extent *x, unsigned nr)
{
  struct slot_zeroes *z = &sl->zeroes;
  uint64_t end = z->pos;
  bool more = true;

  for (unsigned i = 0, first = 0; more && i < nr && z->pos < sl->length; first = i) {
    uint64_t start = end;
    for (; i < nr && same_kind (&x[i], &x[first]); i++)
      end += x[i].length;
    if (end > sl->length)
      end = sl->length;
    /* Blocks that were given back reach into this run: zeroes are asked about again. */
    if (z->pos > start && x[first].zero && !x[first].lower)
      break;
    if (end > z->pos)
      more = take_run (sl, &x[first], i - first, end - z->pos);
  }
}

static void
on_source_status (void *opaque, int err, const struct endpoint_extent *x, unsigned nr)
{
  struct slot *sl = opaque;

  if (err || atomic_load (&sl->of->target->stop))
    give_back_some (sl, sl->length - sl->zeroes.pos);
  else
    take_answer (sl, x, nr);
  if (sl->zeroes.zero_end < sl->zeroes.pos)
    sl->zeroes.zero_end = sl->zeroes.pos;
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

/* May the zeroes from pos on stay unwritten (R8)?  Only the destination can tell, and only about
 * blocks that no session has written. */
static void
look_at_dest (struct slot *sl)
{
  struct slot_zeroes *z = &sl->zeroes;
  const struct target *target = sl->of->target;
  bool visited;
  uint64_t n = visited_run (sl, z->zero_end, &visited);

  if (visited)
    z->write_end = z->pos + n;
  else if (sl->of->engine->options.dest_is_zero && !z->allocated)
    leave_alone (sl, n);
  else if (!endpoint_info (target->endpoint)->can_status || n % target->min_block != 0)
    read_or_write (sl, n);
  else {
    z->state = ZEROES_COMPARING;
    z->chunk = n;
    if (channel_status (sl->of->dest, n, sl->offset + z->pos, on_dest_status, sl) == -1)
      slot_dest_failed (sl, "block status", errno);
    return;
  }
  step (sl);
}

/* What comes next?  From pos on it is known: up to write_end, that the destination must be written;
 * up to read_end, that it must be read; up to zero_end, that the source is zero. */
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
  else if (z->pos < z->write_end)
    write_some (sl);
  else if (z->pos < z->read_end)
    read_some (sl);
  else
    look_at_dest (sl);
}

void
slot_zeroes_start (struct slot *sl)
{
  slot_begin (sl);
  sl->zeroes = (struct slot_zeroes){ 0 };
  step (sl);
}
