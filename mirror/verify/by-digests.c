/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Comparing two disks by the digests of their blocks.
 *
 * A side is an export of digests, or a disk that is read and digested here.  Such a disk is read in
 * small pieces, and a piece is digested as soon as it was read, while the processor's cache still
 * has it: what the page cache has is read within channel_read(), so the next piece then takes the
 * same buffer.  Where the disk has to be waited for, all buffers are in use.
 */

#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "digest/hash.h"
#include "mirror/endpoint/buffers.h"
#include "mirror/verify/walk.h"

#define CHUNK (8u << 20)       /* compared at once */
#define CHUNK_MIN (256u << 10) /* also where block status changes sooner */
#define CHUNKS 8
#define BUFFERS 32

struct by_digests;

struct chunk {
  struct by_digests *all;
  uint64_t offset;
  uint32_t length;     /* 0: free */
  uint32_t left[2];    /* bytes of the disk whose digests are not there yet */
  uint32_t started[2]; /* bytes that were asked for: of a disk that is digested here */
  uint8_t *digests[2];
};

struct buffer {
  struct chunk *chunk;
  struct buffer *next; /* free */
  uint8_t *memory;
  unsigned side;
  uint32_t at, length; /* within the chunk, bytes */
};

struct by_digests {
  struct walk *walk;
  struct digest_key key;
  uint32_t piece; /* bytes read at once */
  struct buffer *free;
  uint8_t *memory, *digests;
  struct buffer buffer[BUFFERS];
  struct chunk chunk[CHUNKS];
};

static void
compare (struct by_digests *d, const struct chunk *c)
{
  struct walk *w = d->walk;

  for (uint64_t i = 0; i < digest_count (&d->key, c->length); i++)
    if (memcmp (c->digests[0] + i * DIGEST_SIZE, c->digests[1] + i * DIGEST_SIZE, DIGEST_SIZE)
        != 0) {
      uint64_t offset = c->offset + i * d->key.block, left = c->length - i * d->key.block;
      if (!walk_differs (w, offset, left < d->key.block ? left : d->key.block, offset))
        return;
    }
}

/* The digests of LENGTH bytes more are there, or never will be. */
static void
have_digests (struct chunk *c, unsigned side, uint32_t length)
{
  struct by_digests *d = c->all;

  c->left[side] -= length;
  if (c->left[0] > 0 || c->left[1] > 0)
    return;
  if (d->walk->error == 0)
    compare (d, c);
  c->length = 0;
  d->walk->active--;
}

/* ---- digests of the server's --------------------------------------------------------------- */

static void
on_digests (struct chunk *c, unsigned side, int err)
{
  if (err)
    walk_error (c->all->walk, side, c->offset, err);
  have_digests (c, side, c->length);
}

static void
on_digests_a (void *opaque, int err)
{
  on_digests (opaque, 0, err);
}

static void
on_digests_b (void *opaque, int err)
{
  on_digests (opaque, 1, err);
}

static void
ask_digests (struct by_digests *d, struct chunk *c, unsigned side)
{
  static const channel_done done[2] = { on_digests_a, on_digests_b };
  uint32_t n = (uint32_t)digest_count (&d->key, c->length) * DIGEST_SIZE;

  if (channel_read (d->walk->side[side].ch, c->digests[side], n,
                    c->offset / d->key.block * DIGEST_SIZE, done[side], c)
      == -1)
    on_digests (c, side, errno);
}

/* ---- digests of our own -------------------------------------------------------------------- */

static void
on_read (void *opaque, int err)
{
  struct buffer *b = opaque;
  struct chunk *c = b->chunk;
  struct by_digests *d = c->all;

  if (err)
    walk_error (d->walk, b->side, c->offset + b->at, err);
  else
    digest_blocks (&d->key, b->memory, b->length,
                   c->digests[b->side] + b->at / d->key.block * DIGEST_SIZE);
  b->next = d->free;
  d->free = b;
  have_digests (c, b->side, b->length);
}

static void
read_piece (struct by_digests *d, struct chunk *c, unsigned side)
{
  const struct walk_side *s = &d->walk->side[side];
  uint32_t min = endpoint_info (s->ep)->min_block, left = c->length - c->started[side];
  struct buffer *b = d->free;

  d->free = b->next;
  b->chunk = c;
  b->side = side;
  b->at = c->started[side];
  b->length = left < d->piece ? left : d->piece;
  c->started[side] += b->length;
  /* Where the disk is longer than what is compared, its minimum block may reach beyond that. */
  if (channel_read (s->ch, b->memory, (b->length + min - 1) / min * min, c->offset + b->at, on_read,
                    b)
      == -1)
    on_read (b, errno);
  channel_run (s->ch);
}

/* The first chunk, in the disk's order, of which something has not been read yet. */
static struct chunk *
chunk_to_read (struct by_digests *d, unsigned side)
{
  struct chunk *first = NULL;

  for (unsigned i = 0; i < CHUNKS; i++) {
    struct chunk *c = &d->chunk[i];
    if (c->started[side] < c->length && (first == NULL || c->offset < first->offset))
      first = c;
  }
  return first;
}

static void
read_disk (struct by_digests *d, unsigned side)
{
  struct walk *w = d->walk;
  struct chunk *c;

  while (w->error == 0 && d->free != NULL && channel_room (w->side[side].ch) > 0
         && (c = chunk_to_read (d, side)) != NULL)
    read_piece (d, c, side);
  /* After an error nobody waits for the rest. */
  while (w->error != 0 && (c = chunk_to_read (d, side)) != NULL) {
    uint32_t rest = c->length - c->started[side];
    c->started[side] = c->length;
    have_digests (c, side, rest);
  }
}

/* ---- chunks -------------------------------------------------------------------------------- */

static struct chunk *
free_chunk (struct by_digests *d)
{
  for (unsigned i = 0; i < CHUNKS; i++)
    if (d->chunk[i].length == 0)
      return &d->chunk[i];
  return NULL;
}

static void
start_chunk (struct by_digests *d, uint64_t length)
{
  struct walk *w = d->walk;
  struct chunk *c = free_chunk (d);

  c->offset = w->next;
  c->length = (uint32_t)length;
  w->next += length;
  w->compared_bytes += length;
  w->active++;
  for (unsigned side = 0; side < 2; side++) {
    c->left[side] = c->length;
    c->started[side] = w->side[side].scale == 1 ? 0 : c->length;
  }
  for (unsigned side = 0; side < 2; side++)
    if (w->side[side].scale != 1)
      ask_digests (d, c, side);
}

/* Digests are asked for before anything is read here, so that the server works meanwhile. */
static bool
has_room (const struct walk *w)
{
  for (unsigned side = 0; side < 2; side++)
    if (w->side[side].scale != 1 && channel_room (w->side[side].ch) == 0)
      return false;
  return w->active < CHUNKS;
}

static void
fill (struct walk *w)
{
  struct by_digests *d = w->pieces;

  while (walk_goes_on (w) && has_room (w)) {
    uint64_t n = walk_skip_zeroes (w);
    if (n == 0)
      break;
    uint64_t left = w->size - w->next, most = CHUNK - w->next % CHUNK;
    n = n < CHUNK_MIN ? CHUNK_MIN : (n + d->key.block - 1) / d->key.block * d->key.block;
    n = n < most ? n : most;
    start_chunk (d, n < left ? n : left);
  }
  for (unsigned side = 0; side < 2; side++)
    if (w->side[side].scale == 1)
      read_disk (d, side);
}

static void
end (struct walk *w)
{
  struct by_digests *d = w->pieces;

  free (d->memory);
  free (d->digests);
  free (d);
}

int
by_digests_init (struct walk *w, const struct digest_key *key, uint32_t piece)
{
  static const struct walk_method method = { .fill = fill, .end = end };
  size_t digests = CHUNK / key->block * DIGEST_SIZE;
  struct by_digests *d = calloc (1, sizeof *d);

  if (d == NULL)
    return -1;
  w->pieces = d;
  w->method = &method;
  d->walk = w;
  d->key = *key;
  d->piece = piece;
  d->memory = buffers_new ((size_t)BUFFERS * piece);
  /* Aligned as channel_read() wants it, and each with room for whole pages. */
  digests = (digests + 4095) & ~(size_t)4095;
  if (posix_memalign ((void **)&d->digests, 4096, 2 * CHUNKS * digests) != 0)
    d->digests = NULL;
  if (d->memory == NULL || d->digests == NULL) {
    end (w);
    return -1;
  }
  for (unsigned i = 0; i < CHUNKS; i++) {
    d->chunk[i].all = d;
    for (unsigned side = 0; side < 2; side++)
      d->chunk[i].digests[side] = d->digests + (2 * i + side) * digests;
  }
  for (unsigned i = 0; i < BUFFERS; i++) {
    d->buffer[i].memory = d->memory + (size_t)i * piece;
    d->buffer[i].next = d->free;
    d->free = &d->buffer[i];
  }
  return 0;
}
