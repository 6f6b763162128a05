/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * WORK_DATA and WORK_VERIFY: copy a claimed run.
 *
 *   state      what is going on                            next
 *   ASKING     the source's server is asked which parts    nothing is to be sent: done; else
 *              differ (DIFFERENCE_FIRST)                   READING
 *   READING    the run is being read from the source, and  read: PLACING, if zeroes
 *              from what it is compared with, if anything  failed: dirty again
 *              (DIFFERENCE_BESIDE)                         were read, or WRITING
 *   PLACING    the source is asked which of the zeroes     WRITING
 *              that were read are holes (sparse=auto)
 *   WRITING    it is being sent, as pieces of data and of  all answered: READ_BACK for
 *              zeroes, without what need not be sent; or   WORK_VERIFY, else done
 *              it waits for room
 *   READ_BACK  it is being read back from the destination  equal to what was written: it leaves
 *                                                          quarantine, done
 *                                                          not equal: dirty again
 *
 * A run that leaves quarantine is still claimed, so that the flush comes before anything is
 * believed (R12).  So is a run that was not sent: the destination may hold it in its memory only,
 * and the flush makes it durable.
 */

#include "config.h"

#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/zero.h"
#include "mirror/engine/difference.h"
#include "mirror/engine/slot-data.h"

#define ZERO_UNIT 4096u /* zeroes are looked for in pieces of this */

static void send_pieces (struct slot *sl);

static bool
has_unit (const struct slot *sl, uint64_t units, uint64_t at)
{
  return units >> (at / sl->of->unit) & 1;
}

/* Which block of the run says most of the destination?  One whose beginning was sent, since other
 * disks may hold what was found there; rather one that is not zero; else the first one. */
static uint64_t
sample_block (const struct slot *sl)
{
  const struct region_geometry *geo = &sl->of->engine->region->geo;
  uint64_t zeroes = UINT64_MAX;

  for (uint64_t n = 0; n < sl->task.count; n++) {
    uint64_t at = n << geo->block_shift, left = sl->length - at;
    if (has_unit (sl, sl->data.same, at))
      continue;
    if (!all_zero (sl->buf + at, left < SAMPLE_BYTES ? left : SAMPLE_BYTES))
      return n;
    if (zeroes == UINT64_MAX)
      zeroes = n;
  }
  return zeroes != UINT64_MAX ? zeroes : 0;
}

static void
finish (struct slot *sl)
{
  struct engine *e = sl->of->engine;
  sl->task.sample = sample_block (sl);
  uint64_t at = sl->task.sample << e->region->geo.block_shift;
  bool sent = !has_unit (sl, sl->data.same, at);
  /* What was not sent is no sample of the destination, unless it is known to be there. */
  bool seen = sent || e->options.sync == ENGINE_SYNC_COMPARE || e->options.sync == ENGINE_SYNC_BASE;

  atomic_fetch_add (&e->counters.acked_bytes, engine_task_bytes (e, &sl->task) - sl->data.skipped);
  atomic_fetch_add (&e->counters.passed_bytes, sl->data.skipped);
  engine_task_done (e, &sl->task, sl->buf + at, seen ? sl->length - at : 0,
                    sent ? SAMPLE_SENT : SAMPLE_FOUND);
  slot_end (sl);
}

/* ---- reading back ---- */

static void read_back (struct slot *sl);

static void
on_read_back (void *opaque, int err)
{
  struct slot *sl = opaque;
  struct engine *e = sl->of->engine;

  if (err) {
    slot_dest_failed (sl, "read-back", err);
    return;
  }
  if (sl->data.pos < sl->length) {
    read_back (sl);
    return;
  }
  if (memcmp (sl->buf, sl->second, sl->length) == 0)
    bitmap_clear (e->region, REGION_QUARANTINE, sl->task.first, sl->task.count);
  else {
    /* A request of a dead session was applied after ours.  Copy again; it stays in quarantine. */
    atomic_fetch_add (&e->counters.mismatches, sl->task.count);
    claim_give_back (e->region, sl->task.set, sl->task.first, sl->task.count);
  }
  finish (sl);
}

/* Read the next part back: all of it, unless the destination takes smaller requests only. */
static void
read_back (struct slot *sl)
{
  const struct endpoint_info *info = endpoint_info (sl->of->target->endpoint);
  uint64_t at = sl->data.pos, n = sl->length - at;

  if (n > info->max_request)
    n = info->max_request;
  sl->data.pos += n;
  n = endpoint_round_up (info, n);
  if (channel_read (sl->of->dest, sl->second + at, (uint32_t)n, sl->offset + at, on_read_back, sl)
      == 0)
    return;
  if (errno == EAGAIN) { /* others have started meanwhile */
    sl->data.pos = at;
    slot_wait_for_room (sl, read_back);
  } else
    slot_dest_failed (sl, "read-back", errno);
}

/* ---- writing ---- */

/* PIECE_THICK: zeroes that must not become a hole. */
enum piece { PIECE_DATA, PIECE_ZERO, PIECE_THICK, PIECE_SAME };

/* What are the N bytes at AT?  Zeroes that the destination could not take for reasons of alignment
 * (an odd tail) are data. */
static enum piece
piece_at (const struct slot *sl, uint64_t at, uint64_t n)
{
  const struct target *target = sl->of->target;

  if (has_unit (sl, sl->data.same, at))
    return PIECE_SAME;
  if (!endpoint_info (target->endpoint)->can_zero || n % target->min_block != 0
      || !all_zero (sl->buf + at, n))
    return PIECE_DATA;
  return has_unit (sl, sl->data.holes, at) ? PIECE_ZERO : PIECE_THICK;
}

/* The length of the next piece of the buffer, from pos on, and its kind. */
static uint64_t
next_piece (const struct slot *sl, enum piece *kind)
{
  const struct target *target = sl->of->target;
  uint32_t unit = target->min_block > ZERO_UNIT ? target->min_block : ZERO_UNIT;
  uint64_t max = endpoint_info (target->endpoint)->max_request;
  uint64_t pos = sl->data.pos, end = pos;

  *kind = PIECE_DATA;
  while (end < sl->length && (*kind != PIECE_DATA || end - pos + unit <= max)) {
    uint64_t n = sl->length - end < unit ? sl->length - end : unit;
    enum piece k = piece_at (sl, end, n);
    if (end == pos)
      *kind = k;
    else if (k != *kind)
      break;
    end += n;
  }
  return end - pos;
}

/* All pieces are acknowledged. */
static void
acknowledged (struct slot *sl)
{
  if (!sl->data.read_back) {
    finish (sl);
    return;
  }
  sl->data.state = DATA_READ_BACK;
  sl->data.pos = 0;
  read_back (sl);
}

/* Stop sending.  The slot is dropped when its last request has been answered. */
static void
write_failed (struct slot *sl, int err)
{
  if (sl->data.failure == 0)
    sl->data.failure = err;
  if (sl->data.outstanding == 0)
    slot_dest_failed (sl, "write", sl->data.failure);
}

/* All that was sent is answered. */
static void
note_reply (struct slot *sl)
{
  struct slot_data *d = &sl->data;
  struct slots *ss = sl->of;
  struct engine_counters *c = &ss->engine->counters;
  uint64_t now = clock_ns (), took = now - d->sent_ns;

  bool pressed = windows_filled (&ss->windows, &ss->active) >= 1;
  /* Urgent requests are short: what they take says nothing about the others. */
  if (!sl->task.urgent) {
    windows_reply (&ss->windows, sl->length, took, d->in_flight, now);
    windows_remove (&ss->windows, &ss->sent, sl->length);
  }
  if (d->data_bytes == 0)
    return;
  atomic_fetch_sub (&c->writing_bytes, d->data_bytes);
  uint64_t written = atomic_fetch_add (&c->written_bytes, d->data_bytes) + d->data_bytes;
  sl->task.reply = (struct latency_reply){
    .took_ns = took,
    .bytes = d->data_bytes,
    .queued = d->queued + d->data_bytes,
    .delivered = written - d->written,
    .pressed = pressed,
    .doubling = windows_change (&ss->windows, sl->length),
  };
  d->data_bytes = 0;
}

static void
on_written (void *opaque, int err)
{
  struct slot *sl = opaque;
  struct slot_data *d = &sl->data;

  d->outstanding--;
  if (!err)
    engine_progress (sl->of->engine);
  if (d->outstanding == 0)
    note_reply (sl);
  if (err || d->failure)
    write_failed (sl, err);
  else if (d->pos == sl->length && d->outstanding == 0)
    acknowledged (sl);
}

/* Send N bytes from pos on.  -1 with errno. */
static int
send_piece (struct slot *sl, uint64_t n, enum piece kind)
{
  struct slots *ss = sl->of;
  struct engine *e = ss->engine;
  const struct target *target = ss->target;
  uint8_t *data = sl->buf + sl->data.pos;
  uint64_t offset = sl->offset + sl->data.pos;

  engine_sends (e, &sl->task);
  if (kind != PIECE_DATA) {
    int r = kind == PIECE_ZERO ? channel_zero (ss->dest, n, offset, on_written, sl)
                               : channel_zero_allocated (ss->dest, n, offset, on_written, sl);
    if (r == -1)
      return -1;
    atomic_fetch_add (&e->region->hdr->zero_bytes, n);
    engine_refund (e, n);
    return 0;
  }
  uint64_t with_pad = n;
  if (n % target->min_block != 0) {
    /* The disk's odd tail: what follows at the destination is written back as it was. */
    memcpy (data + n, target->tail_pad, target->tail_pad_len);
    with_pad += target->tail_pad_len;
  }
  if (channel_write (ss->dest, data, (uint32_t)with_pad, offset, on_written, sl) == -1)
    return -1;
  atomic_fetch_add (&e->region->hdr->sent_bytes, n);
  atomic_fetch_add (&e->counters.writing_bytes, n);
  sl->data.data_bytes += n;
  return 0;
}

/* N bytes from pos on need not be sent. */
static void
skip_piece (struct slot *sl, uint64_t n)
{
  struct engine *e = sl->of->engine;

  sl->data.pos += n;
  sl->data.skipped += n;
  atomic_fetch_add (&e->region->hdr->skipped_bytes, n);
  if (!difference_costs (sl))
    engine_refund (e, n);
}

static void
send_pieces (struct slot *sl)
{
  struct slot_data *d = &sl->data;

  while (d->failure == 0 && d->pos < sl->length) {
    enum piece kind;
    uint64_t n = next_piece (sl, &kind);
    if (kind == PIECE_SAME) {
      skip_piece (sl, n);
      continue;
    }
    if (channel_room (sl->of->dest) == 0) {
      slot_wait_for_room (sl, send_pieces);
      return;
    }
    if (d->outstanding == 0) {
      if (!sl->task.urgent)
        windows_add (&sl->of->windows, &sl->of->sent, sl->length);
      d->in_flight = windows_in_flight (&sl->of->windows, &sl->of->sent, sl->length);
      d->sent_ns = clock_ns ();
      d->queued = atomic_load (&sl->of->engine->counters.writing_bytes);
      d->written = atomic_load (&sl->of->engine->counters.written_bytes);
    }
    if (send_piece (sl, n, kind) == -1) {
      if (d->outstanding == 0 && !sl->task.urgent)
        windows_remove (&sl->of->windows, &sl->of->sent, sl->length);
      write_failed (sl, errno);
      return;
    }
    d->outstanding++;
    d->pos += n;
  }
  if (d->failure == 0 && d->outstanding == 0)
    acknowledged (sl);
}

/* ---- placing zeroes ---- */

static void begin_writing (struct slot *sl);

/* The units of the run that are zero, and are going to be sent so. */
static uint64_t
zero_units (const struct slot *sl)
{
  const struct endpoint_info *info = endpoint_info (sl->of->target->endpoint);
  const uint64_t unit = sl->of->unit;
  uint64_t found = 0;

  for (uint64_t at = 0; info->can_zero && at < sl->length; at += unit)
    if (!has_unit (sl, sl->data.same, at)
        && all_zero (sl->buf + at, sl->length - at < unit ? sl->length - at : unit))
      found |= UINT64_C (1) << at / unit;
  return found;
}

static void place_some (struct slot *sl);

static void
on_source_status (void *opaque, int err, const struct endpoint_extent *x, unsigned nr)
{
  struct slot *sl = opaque;
  struct slot_data *d = &sl->data;
  const uint64_t unit = sl->of->unit;

  if (atomic_load (&sl->of->target->stop)) {
    engine_task_unread (sl->of->engine, &sl->task, ESHUTDOWN);
    slot_end (sl);
    return;
  }
  for (unsigned i = 0; i < nr && !err && d->pos < sl->length; i++) {
    uint64_t end = d->pos + x[i].length < sl->length ? d->pos + x[i].length : sl->length;
    if (!x[i].zero || x[i].allocated)
      for (uint64_t u = d->pos / unit; u * unit < end; u++)
        d->holes &= ~(UINT64_C (1) << u);
    d->pos = end;
  }
  if (err || d->pos == sl->length)
    begin_writing (sl);
  else
    place_some (sl);
}

/* Ask about the run from pos on.  What nobody knows may become a hole. */
static void
place_some (struct slot *sl)
{
  if (channel_status (sl->of->source, sl->length - sl->data.pos, sl->offset + sl->data.pos,
                      on_source_status, sl)
      == 0)
    return;
  if (errno == EAGAIN) /* others have started meanwhile */
    slot_wait_for_room (sl, place_some);
  else
    begin_writing (sl);
}

/* Everything is read.  Find out which zeroes may become holes. */
static void
place (struct slot *sl)
{
  const struct engine *e = sl->of->engine;
  struct slot_data *d = &sl->data;

  d->pos = 0;
  d->holes = e->options.sparse == ENGINE_SPARSE_NEVER ? 0 : UINT64_MAX;
  d->state = DATA_PLACING;
  if (e->options.sparse == ENGINE_SPARSE_AUTO && endpoint_info (e->source)->can_status
      && zero_units (sl) != 0)
    place_some (sl);
  else
    begin_writing (sl);
}

/* The user says that the destination is zero: what would be a hole there, and was never written,
 * need not be sent. */
static void
leave_out_holes (struct slot *sl)
{
  const struct region *r = sl->of->engine->region;
  const uint64_t unit = sl->of->unit;
  uint64_t zeroes = zero_units (sl) & sl->data.holes;

  for (uint64_t at = 0; zeroes != 0 && at < sl->length; at += unit) {
    uint64_t first = (sl->offset + at) >> r->geo.block_shift, found;
    uint64_t last = (sl->offset + at + unit - 1) >> r->geo.block_shift;
    if (has_unit (sl, zeroes, at) && !bitmap_next_set (r, REGION_VISITED, first, last + 1, &found))
      sl->data.same |= UINT64_C (1) << at / unit;
  }
}

/* ---- reading ---- */

/* What is to be sent is known. */
static void
begin_writing (struct slot *sl)
{
  if (sl->of->engine->options.dest_is_zero && sl->data.state == DATA_PLACING)
    leave_out_holes (sl);
  sl->data.state = DATA_WRITING;
  sl->data.pos = 0;
  bitmap_set (sl->of->engine->region, REGION_VISITED, sl->task.first, sl->task.count);
  send_pieces (sl);
}

/* One of the reads has ended. */
static void
arrived (struct slot *sl)
{
  struct slot_data *d = &sl->data;

  if (--d->reading > 0)
    return;
  if (d->failure) {
    /* Nothing was sent, so the claim may go back.  A dead channel is reported by the copier. */
    engine_task_unread (sl->of->engine, &sl->task, d->failure);
    slot_end (sl);
    return;
  }
  if (d->look == DIFFERENCE_BESIDE)
    difference_end (sl);
  place (sl);
}

static void
on_read (void *opaque, int err)
{
  struct slot *sl = opaque;

  if (atomic_load (&sl->of->target->stop))
    err = ESHUTDOWN;
  else if (err == ESHUTDOWN && channel_error (sl->of->source) == NULL)
    err = EIO; /* the server's own answer: trying again for ever would not help */
  sl->data.failure = err;
  arrived (sl);
}

static void
read_source (struct slot *sl)
{
  bool beside = sl->data.look == DIFFERENCE_BESIDE;

  sl->data.state = DATA_READING;
  sl->data.reading = beside ? 2 : 1;
  if (channel_read (sl->of->source, sl->buf, (uint32_t)sl->length, sl->offset, on_read, sl) == -1) {
    if (errno == EAGAIN) { /* after the look: others have started meanwhile */
      slot_wait_for_room (sl, read_source);
      return;
    }
    on_read (sl, errno);
  }
  if (beside)
    difference_begin (sl, arrived);
}

/* The source's server has said which parts differ. */
static void
asked (struct slot *sl)
{
  uint64_t units = (sl->length + sl->of->unit - 1) / sl->of->unit;
  uint64_t all = units == 64 ? UINT64_MAX : (UINT64_C (1) << units) - 1;

  difference_end (sl);
  if (sl->data.same == all)
    begin_writing (sl);
  else
    read_source (sl);
}

void
slot_data_start (struct slot *sl, bool read_back)
{
  slot_begin (sl);
  if (read_back)
    slot_take_second (sl);
  sl->data = (struct slot_data){ .read_back = read_back };
  sl->data.look = read_back ? DIFFERENCE_NO_LOOK : difference_when (sl);
  if (sl->data.look == DIFFERENCE_FIRST) {
    sl->data.state = DATA_ASKING;
    difference_begin (sl, asked);
  } else
    read_source (sl);
}
