/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * WORK_DATA and WORK_VERIFY: copy a claimed run.
 *
 *   state      what is going on                            next
 *   READING    the run is being read from the source       read: WRITING
 *                                                          failed: dirty again
 *   WRITING    it is being sent, as pieces of data and of  all answered: READ_BACK for
 *              zeroes; or it waits for room                WORK_VERIFY, else done
 *   READ_BACK  it is being read back from the destination  equal to what was written: it leaves
 *                                                          quarantine, done
 *                                                          not equal: dirty again
 *
 * A run that leaves quarantine is still claimed, so that the flush comes before anything is
 * believed (R12).
 */

#include "config.h"

#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "mirror/engine/slot-data.h"

#define ZERO_UNIT 4096u /* zeroes are looked for in pieces of this */

static void send_pieces (struct slot *sl);

static void
finish (struct slot *sl)
{
  struct engine *e = sl->of->engine;
  atomic_fetch_add (&e->counters.acked_bytes, sl->length);
  engine_task_done (e, &sl->task, sl->buf, sl->length);
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
  const struct target *target = sl->of->target;
  uint64_t at = sl->data.pos, n = sl->length - at;
  uint32_t max = endpoint_info (target->endpoint)->max_request;

  if (n > max)
    n = max;
  sl->data.pos += n;
  n = (n + target->min_block - 1) / target->min_block * target->min_block;
  if (channel_read (sl->of->dest, sl->second + at, (uint32_t)n, sl->offset + at, on_read_back, sl)
      == -1)
    slot_dest_failed (sl, "read-back", errno);
}

/* ---- writing ---- */

static bool
is_zero (const uint8_t *p, size_t n)
{
  return p[0] == 0 && memcmp (p, p + 1, n - 1) == 0;
}

/* The length of the next piece of the buffer, from pos on: all of it zero, or all of it data.
 * Zeroes that the destination could not take for reasons of alignment (an odd tail) are data. */
static uint64_t
next_piece (const struct slot *sl, bool *zero)
{
  const struct target *target = sl->of->target;
  const struct endpoint_info *info = endpoint_info (target->endpoint);
  uint32_t unit = target->min_block > ZERO_UNIT ? target->min_block : ZERO_UNIT;
  uint64_t pos = sl->data.pos, end = pos;

  *zero = false;
  while (end < sl->length && (*zero || end - pos + unit <= info->max_request)) {
    uint64_t n = sl->length - end < unit ? sl->length - end : unit;
    bool z = info->can_zero && n % target->min_block == 0 && is_zero (sl->buf + end, n);
    if (end == pos)
      *zero = z;
    else if (z != *zero)
      break;
    end += n;
  }
  return end - pos;
}

/* All pieces are acknowledged. */
static void
acknowledged (struct slot *sl)
{
  if (sl->second == NULL) {
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

static void
on_written (void *opaque, int err)
{
  struct slot *sl = opaque;
  struct slot_data *d = &sl->data;

  d->outstanding--;
  if (!err)
    engine_progress (sl->of->engine);
  /* Urgent requests are short: what they take says nothing about the others. */
  if (d->outstanding == 0 && !sl->task.urgent) {
    uint64_t now = clock_ns ();
    window_reply (&sl->of->window, now - d->sent_ns, now);
  }
  if (err || d->failure)
    write_failed (sl, err);
  else if (d->pos == sl->length && d->outstanding == 0)
    acknowledged (sl);
}

/* Send N bytes from pos on.  -1 with errno. */
static int
send_piece (struct slot *sl, uint64_t n, bool zero)
{
  struct slots *ss = sl->of;
  struct engine *e = ss->engine;
  const struct target *target = ss->target;
  uint8_t *data = sl->buf + sl->data.pos;
  uint64_t offset = sl->offset + sl->data.pos;

  if (zero) {
    if (channel_zero (ss->dest, n, offset, on_written, sl) == -1)
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
  return 0;
}

static void
send_pieces (struct slot *sl)
{
  struct slot_data *d = &sl->data;

  while (d->failure == 0 && d->pos < sl->length) {
    if (channel_room (sl->of->dest) == 0) {
      slot_wait_for_room (sl, send_pieces);
      return;
    }
    bool zero;
    uint64_t n = next_piece (sl, &zero);
    if (send_piece (sl, n, zero) == -1) {
      write_failed (sl, errno);
      return;
    }
    if (d->outstanding++ == 0)
      d->sent_ns = clock_ns ();
    d->pos += n;
  }
}

/* ---- reading ---- */

static void
on_read (void *opaque, int err)
{
  struct slot *sl = opaque;

  if (atomic_load (&sl->of->target->stop))
    err = ESHUTDOWN;
  else if (err == ESHUTDOWN && channel_error (sl->of->source) == NULL)
    err = EIO; /* the server's own answer: trying again for ever would not help */
  if (err) {
    /* Nothing was sent, so the claim may go back.  A dead channel is reported by the copier. */
    engine_task_unread (sl->of->engine, &sl->task, err);
    slot_end (sl);
    return;
  }
  sl->data.state = DATA_WRITING;
  send_pieces (sl);
}

void
slot_data_start (struct slot *sl, bool reads_back)
{
  slot_begin (sl);
  if (reads_back)
    slot_take_second (sl);
  sl->data = (struct slot_data){ .state = DATA_READING };
  if (channel_read (sl->of->source, sl->buf, (uint32_t)sl->length, sl->offset, on_read, sl) == -1)
    on_read (sl, errno);
}
