/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The steps of one task, from the engine's hands back into them.  Everything runs in the copier's
 * thread, in completions of its channels.
 *
 *   data      READING -> WRITING (runs of data and of zeroes) -> done
 *   verify    the same, then READBACK: compared with what was written; equal: out of quarantine,
 *             still claimed, so that the flush comes before anything is believed (R12)
 *   zero      CHECKING: the source's block status, asked after the claim (R8)
 *               not zero after all: those blocks are given back as dirty
 *               zero: first session: COMPARING: what the destination reports as zero is left alone
 *                     the rest: ZEROING; then on with CHECKING until the task's end
 *   ask       ASKING -> hints
 *   flush     FLUSHING
 *
 * Whatever goes wrong at the destination ends the session: the slot is then simply dropped, for
 * its claim is revoked together with all others (R5, R7).
 */

#include "config.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mirror/engine/copier.h"

#define ZERO_UNIT 4096u /* zeroes are looked for in pieces of this */
/* A server may have to write the zeroes out, for all slots at the same time, within the time limit
 * of a request. */
#define MAX_ZERO_REQUEST (UINT64_C (32) << 20)
#define MAX_STATUS_REQUEST (UINT64_C (2) << 30)

static void step_zero (struct slot *sl);
static void send_data (struct slot *sl);

static void
release (struct slot *sl)
{
  struct copier *c = sl->c;
  if (sl->verify)
    c->readbacks[c->nr_readbacks++] = sl->readback;
  sl->verify = false;
  if (sl->task.urgent)
    c->nr_urgent--;
  sl->state = SLOT_FREE;
  c->nr_active--;
}

/* The destination failed a request: the session is over (R5). */
static void
dest_failed (struct slot *sl, const char *what, int err)
{
  const char *name = endpoint_name (sl->c->session->dest);
  char *why;
  if ((sl->state == SLOT_FLUSHING
           ? asprintf (&why, "%s: %s: %s", name, what, strerror (err))
           : asprintf (&why, "%s: %s of %" PRIu64 " bytes at offset %" PRIu64 ": %s", name, what,
                       sl->length, sl->offset, strerror (err)))
      == -1)
    why = NULL;
  /* A dead channel has the better explanation, and reports it by itself.  (ERR does not tell: a
   * server that shuts down answers ESHUTDOWN on a connection that lives.) */
  if (channel_error (sl->c->dest) == NULL)
    session_fail (sl->c->session, why ? why : "out of memory");
  free (why);
  release (sl);
}

static void
wait_for_room (struct slot *sl)
{
  struct slot **p = &sl->c->waiting;
  while (*p)
    p = &(*p)->next;
  sl->next = NULL;
  *p = sl;
}

void
slot_send_waiting (struct copier *c)
{
  struct slot *list = c->waiting; /* once round: some of them may come back into it */
  c->waiting = NULL;
  while (list) {
    struct slot *sl = list;
    list = sl->next;
    if (sl->state == SLOT_WRITING)
      send_data (sl);
    else
      step_zero (sl);
  }
}

/* ---- data ---- */

static bool
is_zero (const uint8_t *p, size_t n)
{
  return p[0] == 0 && memcmp (p, p + 1, n - 1) == 0;
}

/* The next piece of the buffer from pos on: all zero, or data.  Zeroes that the destination could
 * not take for reasons of alignment (an odd tail) are data. */
static uint64_t
next_piece (const struct slot *sl, bool *zero)
{
  const struct session *s = sl->c->session;
  const struct endpoint_info *info = endpoint_info (s->dest);
  uint32_t unit = s->min_block > ZERO_UNIT ? s->min_block : ZERO_UNIT;
  uint64_t end = sl->pos;

  *zero = false;
  while (end < sl->length && (*zero || end - sl->pos + unit <= info->max_request)) {
    uint64_t n = sl->length - end < unit ? sl->length - end : unit;
    bool z = info->can_zero && n % s->min_block == 0 && is_zero (sl->buf + end, n);
    if (end == sl->pos)
      *zero = z;
    else if (z != *zero)
      break;
    end += n;
  }
  return end - sl->pos;
}

static void
data_done (struct slot *sl)
{
  struct engine *e = sl->c->engine;
  atomic_fetch_add (&e->counters.acked_bytes, sl->length);
  engine_task_done (e, &sl->task, sl->buf, sl->length);
  release (sl);
}

static void read_back (struct slot *sl);

static void
on_readback (void *opaque, int err)
{
  struct slot *sl = opaque;
  struct engine *e = sl->c->engine;

  if (err) {
    dest_failed (sl, "read-back", err);
    return;
  }
  if (sl->pos < sl->length) {
    read_back (sl);
    return;
  }
  if (memcmp (sl->buf, sl->readback, sl->length) == 0)
    bitmap_clear (e->region, REGION_QUARANTINE, sl->task.first, sl->task.count);
  else {
    /* A request of a dead session was applied after ours.  Copy again; it stays in quarantine. */
    atomic_fetch_add (&e->counters.mismatches, sl->task.count);
    claim_give_back (e->region, sl->task.set, sl->task.first, sl->task.count);
  }
  data_done (sl);
}

/* Read the next part back: all of it, unless the destination takes smaller requests only. */
static void
read_back (struct slot *sl)
{
  struct copier *c = sl->c;
  uint32_t min = c->session->min_block;
  uint64_t at = sl->pos, n = sl->length - at;
  uint32_t max = endpoint_info (c->session->dest)->max_request;

  if (n > max)
    n = max;
  sl->pos += n;
  n = (n + min - 1) / min * min;
  if (channel_read (c->dest, sl->readback + at, (uint32_t)n, sl->offset + at, on_readback, sl)
      == -1)
    dest_failed (sl, "read-back", errno);
}

/* All pieces are acknowledged. */
static void
data_acknowledged (struct slot *sl)
{
  if (!sl->verify) {
    data_done (sl);
    return;
  }
  sl->state = SLOT_READBACK;
  sl->pos = 0;
  read_back (sl);
}

/* Stop sending; the slot is dropped when its last request has been answered. */
static void
write_failed (struct slot *sl, int err)
{
  if (sl->outstanding == 0)
    dest_failed (sl, "write", err);
  else if (sl->pos != UINT64_MAX) {
    sl->pos = UINT64_MAX;
    sl->failure = err;
  }
}

static void
on_written (void *opaque, int err)
{
  struct slot *sl = opaque;
  sl->outstanding--;
  if (!err)
    engine_progress (sl->c->engine);
  /* Urgent requests are short: what they take says nothing about the others. */
  if (sl->outstanding == 0 && !sl->task.urgent) {
    uint64_t now = now_ns ();
    window_reply (&sl->c->window, now - sl->sent_ns, now);
  }
  if (err)
    write_failed (sl, err);
  else if (sl->pos == UINT64_MAX)
    write_failed (sl, sl->failure);
  else if (sl->pos == sl->length && sl->outstanding == 0)
    data_acknowledged (sl);
}

/* Send one piece.  -1 with errno. */
static int
send_piece (struct slot *sl, uint64_t n, bool zero)
{
  struct copier *c = sl->c;
  struct session *s = c->session;
  uint64_t offset = sl->offset + sl->pos;

  if (zero) {
    if (channel_zero (c->dest, n, offset, on_written, sl) == -1)
      return -1;
    atomic_fetch_add (&c->engine->region->hdr->zero_bytes, n);
    engine_refund (c->engine, n);
    return 0;
  }
  uint64_t with_pad = n;
  if (n % s->min_block != 0) {
    /* The disk's odd tail: what follows at the destination is written back as it was. */
    memcpy (sl->buf + sl->pos + n, s->tail_pad, s->tail_pad_len);
    with_pad += s->tail_pad_len;
  }
  if (channel_write (c->dest, sl->buf + sl->pos, (uint32_t)with_pad, offset, on_written, sl) == -1)
    return -1;
  atomic_fetch_add (&c->engine->region->hdr->sent_bytes, n);
  return 0;
}

static void
send_data (struct slot *sl)
{
  struct copier *c = sl->c;

  while (sl->pos < sl->length) {
    if (channel_room (c->dest) == 0) {
      wait_for_room (sl);
      return;
    }
    bool zero;
    uint64_t n = next_piece (sl, &zero);
    if (send_piece (sl, n, zero) == -1) {
      write_failed (sl, errno);
      return;
    }
    if (sl->outstanding++ == 0)
      sl->sent_ns = now_ns ();
    sl->pos += n;
  }
}

static void
on_read (void *opaque, int err)
{
  struct slot *sl = opaque;

  if (atomic_load (&sl->c->session->stop))
    err = ESHUTDOWN;
  else if (err == ESHUTDOWN && channel_error (sl->c->source) == NULL)
    err = EIO; /* the server's own answer: trying again for ever would not help */
  if (err) {
    /* Nothing was sent, so the claim may go back.  If the channel is dead the copier reports that.
     */
    engine_task_unread (sl->c->engine, &sl->task, err);
    release (sl);
    return;
  }
  sl->state = SLOT_WRITING;
  sl->pos = 0;
  send_data (sl);
}

/* ---- zeroes ---- */

static void
zero_done (struct slot *sl)
{
  static const uint8_t zeroes[SAMPLE_BYTES];
  engine_task_done (sl->c->engine, &sl->task, zeroes, sizeof zeroes);
  release (sl);
}

static void
on_zeroed (void *opaque, int err)
{
  struct slot *sl = opaque;
  sl->outstanding = 0;
  if (err) {
    dest_failed (sl, "write of zeroes", err);
    return;
  }
  engine_progress (sl->c->engine);
  step_zero (sl);
}

/* Make the destination zero from pos on, up to write_end, one request at a time. */
static void
zero_some (struct slot *sl)
{
  struct copier *c = sl->c;
  struct session *s = c->session;
  struct engine_counters *n = &c->engine->counters;
  const struct endpoint_info *info = endpoint_info (s->dest);
  uint64_t len = sl->write_end - sl->pos, offset = sl->offset + sl->pos;
  int r;

  sl->state = SLOT_ZEROING;
  if (info->can_zero && len >= s->min_block) {
    if (len > MAX_ZERO_REQUEST)
      len = MAX_ZERO_REQUEST;
    len -= len % s->min_block;
    r = channel_zero (c->dest, len, offset, on_zeroed, sl);
    atomic_fetch_add (&c->engine->region->hdr->zero_bytes, len);
  } else {
    uint64_t max = (uint64_t)c->engine->request_blocks << c->engine->region->geo.block_shift;
    if (max > info->max_request)
      max = info->max_request;
    if (len > max)
      len = max;
    memset (sl->buf, 0, len);
    uint64_t pad = len % s->min_block ? s->tail_pad_len : 0;
    if (pad)
      memcpy (sl->buf + len, s->tail_pad, pad);
    r = channel_write (c->dest, sl->buf, (uint32_t)(len + pad), offset, on_zeroed, sl);
    atomic_fetch_add (&c->engine->region->hdr->sent_bytes, len);
  }
  if (r == -1) {
    dest_failed (sl, "write of zeroes", errno);
    return;
  }
  atomic_fetch_add (&n->extent_bytes, len);
  sl->pos += len;
  sl->outstanding = 1;
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

static void
on_dest_status (void *opaque, int err, const struct endpoint_extent *x, unsigned nr)
{
  struct slot *sl = opaque;
  bool zero = false;
  uint64_t n = sl->zero_end - sl->pos;

  if (channel_error (sl->c->dest) != NULL) {
    dest_failed (sl, "block status", err ? err : ESHUTDOWN);
    return;
  }
  if (!err) {
    uint64_t same = leading (x, nr, &zero);
    if (same < n)
      n = same;
  }
  if (zero) {
    sl->pos += n;
    if (!endpoint_info (sl->c->session->dest)->can_zero)
      engine_refund (sl->c->engine, n); /* taken by engine_next() */
    atomic_fetch_add (&sl->c->engine->counters.skipped_bytes, n);
    atomic_fetch_add (&sl->c->engine->counters.extent_bytes, n);
  } else
    sl->write_end = sl->pos + n;
  step_zero (sl);
}

/* Give the blocks from pos on back as dirty, as far as N bytes reach into them. */
static void
give_back_some (struct slot *sl, uint64_t n)
{
  struct engine *e = sl->c->engine;
  unsigned shift = e->region->geo.block_shift;
  uint64_t b0 = (sl->offset + sl->pos) >> shift;
  uint64_t end = sl->offset + sl->pos + n;
  if (end > sl->offset + sl->length)
    end = sl->offset + sl->length;
  uint64_t b1 = ((end - 1) >> shift) + 1;

  claim_give_back (e->region, sl->task.set, b0, b1 - b0);
  sl->pos += region_bytes (&e->region->geo, b0, b1 - b0);
  sl->zero_end = sl->write_end = sl->pos;
}

static void
on_source_status (void *opaque, int err, const struct endpoint_extent *x, unsigned nr)
{
  struct slot *sl = opaque;
  const struct region_geometry *geo = &sl->c->engine->region->geo;
  uint64_t left = sl->length - sl->pos;

  if (atomic_load (&sl->c->session->stop))
    err = ESHUTDOWN;
  if (err) {
    give_back_some (sl, left);
  } else {
    bool zero;
    uint64_t n = leading (x, nr, &zero);
    if (n > left)
      n = left;
    /* Whole blocks only; the task's end is a block's end, or the disk's. */
    uint64_t whole = n == left ? n : n & ~(uint64_t)(geo->block_size - 1);
    if (zero && whole > 0)
      sl->zero_end = sl->pos + whole;
    else
      give_back_some (sl, n);
  }
  step_zero (sl);
}

/* What comes next for a task of zeroes?  pos <= write_end <= zero_end <= length, or write_end <
 * pos: to be asked. */
static void
step_zero (struct slot *sl)
{
  struct copier *c = sl->c;
  struct engine *e = c->engine;

  if (sl->pos == sl->length) {
    zero_done (sl);
    return;
  }
  if (sl->pos == sl->zero_end) {
    sl->state = SLOT_CHECKING;
    uint64_t n = sl->length - sl->pos;
    if (n > MAX_STATUS_REQUEST)
      n = MAX_STATUS_REQUEST;
    if (channel_status (c->source, n, sl->offset + sl->pos, on_source_status, sl) == -1) {
      if (errno == EAGAIN)
        wait_for_room (sl);
      else {
        give_back_some (sl, sl->length - sl->pos);
        zero_done (sl);
      }
    }
    return;
  }
  if (channel_room (c->dest) == 0) {
    wait_for_room (sl);
    return;
  }
  if (sl->write_end <= sl->pos) {
    if (atomic_load (&e->may_skip) && endpoint_info (c->session->dest)->can_status
        && (sl->zero_end - sl->pos) % c->session->min_block == 0) {
      sl->state = SLOT_COMPARING;
      if (channel_status (c->dest, sl->zero_end - sl->pos, sl->offset + sl->pos, on_dest_status, sl)
          == -1)
        dest_failed (sl, "block status", errno);
      return;
    }
    sl->write_end = sl->zero_end;
  }
  zero_some (sl);
}

/* ---- hints, flush ---- */

static void
on_hint (void *opaque, int err, const struct endpoint_extent *x, unsigned nr)
{
  struct slot *sl = opaque;
  engine_hints (sl->c->engine, &sl->task, err, x, nr);
  release (sl);
}

static void
on_flushed (void *opaque, int err)
{
  struct slot *sl = opaque;
  if (err) {
    /* Flushing again would prove nothing: the server may have dropped the pages (R5). */
    sl->length = sl->offset = 0;
    dest_failed (sl, "flush", err);
    return;
  }
  engine_progress (sl->c->engine);
  engine_flush_done (sl->c->engine);
  release (sl);
}

void
slot_start (struct slot *sl, enum engine_work work)
{
  struct copier *c = sl->c;
  struct engine *e = c->engine;
  const struct region_geometry *geo = &e->region->geo;

  c->nr_active++;
  c->nr_urgent += sl->task.urgent;
  sl->pos = sl->zero_end = sl->write_end = 0;
  sl->outstanding = 0;
  sl->verify = work == WORK_VERIFY;
  if (work == WORK_FLUSH) {
    sl->state = SLOT_FLUSHING;
    if (!c->session->have_flush)
      on_flushed (sl, 0);
    else if (channel_flush (c->dest, on_flushed, sl) == -1)
      dest_failed (sl, "flush", errno);
    return;
  }
  sl->offset = sl->task.first << geo->block_shift;
  sl->length = region_bytes (geo, sl->task.first, sl->task.count);
  switch (work) {
  case WORK_ZERO:
    step_zero (sl);
    break;
  case WORK_ASK:
    sl->state = SLOT_ASKING;
    if (channel_status (c->source, sl->length, sl->offset, on_hint, sl) == -1)
      on_hint (sl, errno, NULL, 0);
    break;
  default:
    if (sl->verify)
      sl->readback = c->readbacks[--c->nr_readbacks];
    sl->state = SLOT_READING;
    if (channel_read (c->source, sl->buf, (uint32_t)sl->length, sl->offset, on_read, sl) == -1)
      on_read (sl, errno);
  }
}
