/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Comparing two disks by reading both.
 */

#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "mirror/endpoint/buffers.h"
#include "mirror/verify/walk.h"

#define PIECES 32

struct by_bytes;

struct piece {
  struct by_bytes *all;
  uint8_t *buf[2];
  uint64_t offset;
  uint32_t length;
  unsigned outstanding; /* reads; 0: free */
};

struct by_bytes {
  struct walk *walk;
  uint8_t *memory;
  uint32_t length; /* of a piece, at most */
  struct piece piece[PIECES];
};

static void
compare (struct walk *w, const struct piece *p)
{
  for (uint32_t at = 0, n; at < p->length; at += n) {
    n = w->note != NULL ? VERIFY_UNIT - (uint32_t)((p->offset + at) % VERIFY_UNIT) : p->length;
    if (n > p->length - at)
      n = p->length - at;
    if (memcmp (p->buf[0] + at, p->buf[1] + at, n) == 0)
      continue;
    uint32_t i = at;
    while (p->buf[0][i] == p->buf[1][i])
      i++;
    walk_differs (w, p->offset + at, n, p->offset + i);
  }
}

static void
on_read (struct piece *p, unsigned side, int err)
{
  struct walk *w = p->all->walk;

  if (err)
    walk_error (w, side, p->offset, err);
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

static struct piece *
free_piece (struct by_bytes *b)
{
  for (unsigned i = 0; i < PIECES; i++)
    if (b->piece[i].outstanding == 0)
      return &b->piece[i];
  return NULL;
}

static int
start_piece (struct by_bytes *b, uint64_t length)
{
  static const channel_done done[2] = { on_read_a, on_read_b };
  struct walk *w = b->walk;
  struct piece *p = free_piece (b);

  p->offset = w->next;
  p->length = length < b->length ? (uint32_t)length : b->length;
  w->active++;
  for (unsigned side = 0; side < 2; side++) {
    /* Where one side is longer, its minimum block may reach beyond what is compared. */
    uint32_t min = endpoint_info (w->side[side].ep)->min_block;
    uint32_t n = (p->length + min - 1) / min * min;
    p->outstanding++;
    if (channel_read (w->side[side].ch, p->buf[side], n, p->offset, done[side], p) == -1) {
      on_read (p, side, errno);
      if (side == 0)
        return -1;
    }
  }
  w->next += p->length;
  w->compared_bytes += p->length;
  return 0;
}

static void
fill (struct walk *w)
{
  struct by_bytes *b = w->pieces;

  while (walk_goes_on (w) && w->active < PIECES && channel_room (w->side[0].ch) > 0
         && channel_room (w->side[1].ch) > 0) {
    if (walk_skip_zeroes (w) == 0)
      return;
    /* Requests stay aligned to whole pieces, whatever the extents are. */
    uint64_t to_boundary = b->length - w->next % b->length, left = w->size - w->next;
    if (start_piece (b, left < to_boundary ? left : to_boundary) == -1)
      return;
    /* What the page caches have is compared, and its buffers are free again, while the processor's
     * cache has it. */
    channel_run (w->side[0].ch);
    channel_run (w->side[1].ch);
  }
}

static void
end (struct walk *w)
{
  struct by_bytes *b = w->pieces;

  free (b->memory);
  free (b);
}

int
by_bytes_init (struct walk *w, uint32_t piece)
{
  static const struct walk_method method = { .fill = fill, .end = end };
  struct by_bytes *b = calloc (1, sizeof *b);
  uint8_t *memory = buffers_new (2 * (size_t)PIECES * piece);

  if (b == NULL || memory == NULL) {
    free (b);
    free (memory);
    return -1;
  }
  b->walk = w;
  b->length = piece;
  b->memory = memory;
  for (unsigned i = 0; i < PIECES; i++) {
    b->piece[i].all = b;
    b->piece[i].buf[0] = memory + 2 * (size_t)i * piece;
    b->piece[i].buf[1] = b->piece[i].buf[0] + piece;
  }
  w->pieces = b;
  w->method = &method;
  return 0;
}
