/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Compare two endpoints.  See verify.h.
 *
 * One thread, many requests: the disk is walked in ascending order in pieces; each piece is read
 * from both sides at the same time.  Pieces end in any order; what counts is the lowest offset that
 * differs, so after a difference only pieces below it still matter, and those are all in flight
 * already.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "mirror/endpoint/buffers.h"
#include "mirror/verify/verify.h"

#define PIECE (256u * 1024)
#define PIECES 32
#define MAX_STATUS (UINT64_C (1) << 30)

/* What block status said last of one side: from `offset` on, `length` bytes are (not) zero. */
struct known {
  struct channel *ch;
  bool can_status, pending;
  uint64_t offset, length;
  bool zero;
};

struct walk {
  struct endpoint *ep[2];
  struct channel *ch[2];
  struct known known[2];
  struct piece {
    struct walk *w;
    uint8_t *buf[2];
    uint64_t offset;
    uint32_t length;
    unsigned outstanding; /* reads; 0: free */
  } pieces[PIECES];
  unsigned active;
  uint64_t size;    /* to compare */
  uint32_t unit;    /* offsets are multiples of this: 4096, or a side's minimum block */
  uint32_t piece;   /* at most so many bytes in one read: what both sides take */
  uint64_t next;    /* first byte that was not dealt with yet */
  uint64_t differs; /* lowest differing offset, UINT64_MAX: none */
  uint64_t read_bytes;
  int error;
  unsigned error_side;
  uint64_t error_offset;
};

static void
compare (struct walk *w, const struct piece *p)
{
  if (memcmp (p->buf[0], p->buf[1], p->length) == 0)
    return;
  uint32_t i = 0;
  while (p->buf[0][i] == p->buf[1][i])
    i++;
  if (p->offset + i < w->differs)
    w->differs = p->offset + i;
}

static void
on_read (struct piece *p, unsigned side, int err)
{
  struct walk *w = p->w;
  if (err && w->error == 0) {
    w->error = err;
    w->error_side = side;
    w->error_offset = p->offset;
  }
  if (--p->outstanding > 0)
    return;
  w->active--;
  if (w->error == 0)
    compare (w, p);
}

static void
on_read_a (void *opaque, int err)
{
  on_read (opaque, 0, err);
}

static void
on_read_b (void *opaque, int err)
{
  on_read (opaque, 1, err);
}

static void
on_status (void *opaque, int err, const struct endpoint_extent *x, unsigned nr)
{
  struct known *k = opaque;
  k->pending = false;
  k->zero = false;
  k->length = PIECE; /* not known: read some, then ask again */
  if (err)
    return;
  k->zero = x[0].zero;
  k->length = 0;
  for (unsigned i = 0; i < nr && x[i].zero == k->zero; i++)
    k->length += x[i].length;
}

/* How far from `next` on is it known whether side K is zero?  0: asked, wait. */
static uint64_t
known_length (struct walk *w, struct known *k, bool *zero)
{
  *zero = k->zero;
  if (!k->can_status)
    return w->size - w->next;
  if (!k->pending && w->next >= k->offset && w->next < k->offset + k->length)
    return k->offset + k->length - w->next;
  if (!k->pending && channel_room (k->ch) > 0) {
    uint64_t n = w->size - w->next < MAX_STATUS ? w->size - w->next : MAX_STATUS;
    k->offset = w->next;
    k->length = 0;
    k->pending = channel_status (k->ch, n, w->next, on_status, k) == 0;
    if (!k->pending)
      k->can_status = k->zero = false;
  }
  return 0;
}

static struct piece *
free_piece (struct walk *w)
{
  for (unsigned i = 0; i < PIECES; i++)
    if (w->pieces[i].outstanding == 0)
      return &w->pieces[i];
  return NULL;
}

static int
start_piece (struct walk *w, uint64_t length)
{
  static const channel_done done[2] = { on_read_a, on_read_b };
  struct piece *p = free_piece (w);

  p->offset = w->next;
  p->length = length < w->piece ? (uint32_t)length : w->piece;
  w->active++;
  for (unsigned side = 0; side < 2; side++) {
    /* Where one side is longer, its minimum block may reach beyond what is compared. */
    uint32_t min = endpoint_info (w->ep[side])->min_block;
    uint32_t n = (p->length + min - 1) / min * min;
    p->outstanding++;
    if (channel_read (w->ch[side], p->buf[side], n, p->offset, done[side], p) == -1) {
      on_read (p, side, errno);
      if (side == 0)
        return -1;
    }
  }
  w->next += p->length;
  w->read_bytes += p->length;
  return 0;
}

static void
fill (struct walk *w)
{
  while (w->next < w->size && w->error == 0 && w->differs == UINT64_MAX && w->active < PIECES
         && channel_room (w->ch[0]) > 0 && channel_room (w->ch[1]) > 0) {
    bool za, zb;
    uint64_t a = known_length (w, &w->known[0], &za), b = known_length (w, &w->known[1], &zb);
    if (a == 0 || b == 0)
      return;
    uint64_t n = a < b ? a : b;
    if (n > w->size - w->next)
      n = w->size - w->next;
    /* Requests stay aligned to whole pieces, whatever the extents are. */
    uint64_t to_boundary = w->piece - w->next % w->piece;
    if (za && zb && n >= w->unit) {
      if (n < w->size - w->next)
        n -= (w->next + n) % w->unit;
      w->next += n;
    } else if (start_piece (w, w->size - w->next < to_boundary ? w->size - w->next : to_boundary)
               == -1)
      return;
  }
}

static int
turn (struct walk *w)
{
  struct pollfd fds[2 * CHANNEL_MAX_FDS];
  int timeout = 200;
  unsigned na = channel_pollfds (w->ch[0], fds, CHANNEL_MAX_FDS, &timeout);
  unsigned nb = channel_pollfds (w->ch[1], fds + na, CHANNEL_MAX_FDS, &timeout);

  if (poll (fds, na + nb, timeout) == -1 && errno != EINTR)
    return errno;
  if (channel_dispatch (w->ch[0], fds, na) == -1)
    return w->error_side = 0, ESHUTDOWN;
  if (channel_dispatch (w->ch[1], fds + na, nb) == -1)
    return w->error_side = 1, ESHUTDOWN;
  return 0;
}

static enum verify_result
walk_all (struct walk *w, const struct verify_options *o, char **error)
{
  for (;;) {
    fill (w);
    bool more = w->next < w->size && w->error == 0 && w->differs == UINT64_MAX;
    if (!more && w->active == 0)
      break;
    if (w->active == 0 && !w->known[0].pending && !w->known[1].pending)
      continue;
    int err = turn (w);
    if (err && w->error == 0)
      w->error = err;
    if (err)
      break;
    if (atomic_load (o->signal))
      return VERIFY_CANCELLED;
    if (o->progress)
      o->progress (o->opaque, w->next, w->size);
  }
  if (w->error) {
    const char *why = channel_error (w->ch[w->error_side]);
    text_error (error, "%s: cannot read at offset %" PRIu64 ": %s",
                endpoint_name (w->ep[w->error_side]), w->error_offset,
                why ? why : strerror (w->error));
    return VERIFY_FAILED;
  }
  return w->differs == UINT64_MAX ? VERIFY_EQUAL : VERIFY_DIFFERENT;
}

static int
open_side (struct walk *w, unsigned side, char *const *argv, unsigned nr,
           const struct endpoint_options *eo, char **error)
{
  struct endpoint_options options = *eo;
  options.writable = options.create = false;
  if (nr == 1)
    options.nr_in_flight = 1; /* see copy.c */
  w->ep[side] = endpoint_open (argv, nr, &options, NULL, error);
  if (w->ep[side] == NULL)
    return -1;
  w->ch[side] = channel_open (w->ep[side], NULL, error);
  if (w->ch[side] == NULL)
    return -1;
  w->known[side].ch = w->ch[side];
  w->known[side].can_status = endpoint_info (w->ep[side])->can_status;
  return 0;
}

enum verify_result
verify_run (const struct verify_options *o, struct verify_report *report, char **error)
{
  struct walk *w = calloc (1, sizeof *w);
  uint8_t *memory = NULL;
  enum verify_result result = VERIFY_FAILED;

  *error = NULL;
  memset (report, 0, sizeof *report);
  if (w != NULL)
    memory = buffers_new (2 * (size_t)PIECES * PIECE);
  if (memory == NULL) {
    free (w);
    text_error (error, "out of memory");
    return VERIFY_FAILED;
  }
  for (unsigned i = 0; i < PIECES; i++) {
    w->pieces[i].w = w;
    w->pieces[i].buf[0] = memory + 2 * (size_t)i * PIECE;
    w->pieces[i].buf[1] = w->pieces[i].buf[0] + PIECE;
  }
  if (open_side (w, 0, o->a, o->nr_a, &o->endpoint, error) == 0
      && open_side (w, 1, o->b, o->nr_b, &o->endpoint, error) == 0) {
    report->size = endpoint_info (w->ep[0])->size;
    report->size_b = endpoint_info (w->ep[1])->size;
    w->size = report->size < report->size_b ? report->size : report->size_b;
    w->differs = UINT64_MAX;
    w->unit = 4096;
    w->piece = PIECE;
    for (unsigned side = 0; side < 2; side++) {
      const struct endpoint_info *info = endpoint_info (w->ep[side]);
      if (info->min_block > w->unit)
        w->unit = info->min_block;
      while (w->piece > info->max_request && w->piece > w->unit)
        w->piece /= 2;
    }
    result = walk_all (w, o, error);
    report->read_bytes = w->read_bytes;
    report->offset = w->differs;
    if (result == VERIFY_EQUAL && report->size_b < report->size) {
      report->offset = report->size_b;
      result = VERIFY_DIFFERENT;
    }
  }
  for (unsigned side = 0; side < 2; side++) {
    if (w->ch[side])
      channel_close (w->ch[side]); /* completes what is in flight: w and memory are still there */
    if (w->ep[side])
      endpoint_close (w->ep[side]);
  }
  free (memory);
  free (w);
  return result;
}
