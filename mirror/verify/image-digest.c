/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The digest of a whole image.  See image-digest.h.
 *
 * The image is read in windows.  Within a window the reads end in any order; a window's digests
 * are added in the order of the disk when all are there.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "mirror/endpoint/buffers.h"
#include "mirror/verify/image-digest.h"

#define WINDOW (64u << 20)
#define PIECE (256u << 10)
#define BUFFERS 32

struct reader;

struct piece {
  struct reader *r;
  struct piece *next; /* free */
  uint8_t *memory;
  uint64_t offset; /* within the window */
  uint32_t length;
};

struct reader {
  struct endpoint *ep;
  struct channel *ch;
  uint8_t *memory, *digests; /* digests: of one window */
  struct piece piece[BUFFERS], *free;
  unsigned active;
  uint64_t window; /* where it begins */
  uint64_t length; /* of the window */
  uint64_t next;   /* within it: not asked for yet */
  int error;
  uint64_t error_offset;
  bool status_done;
  uint64_t zero_length; /* the window begins with so many zeroes, as far as status tells */
};

static void
on_read (void *opaque, int err)
{
  struct piece *p = opaque;
  struct reader *r = p->r;

  if (err && r->error == 0) {
    r->error = err;
    r->error_offset = r->window + p->offset;
  } else if (!err) {
    /* The last block of an image is filled up with zeroes. */
    uint32_t block = digest_whole_key.block, whole = (p->length + block - 1) / block * block;
    memset (p->memory + p->length, 0, whole - p->length);
    digest_blocks (&digest_whole_key, p->memory, whole,
                   r->digests + p->offset / block * DIGEST_SIZE);
  }
  p->next = r->free;
  r->free = p;
  r->active--;
}

static void
on_status (void *opaque, int err, const struct endpoint_extent *x, unsigned nr)
{
  struct reader *r = opaque;

  r->status_done = true;
  for (unsigned i = 0; !err && i < nr && x[i].zero; i++)
    r->zero_length += x[i].length;
}

static void
start_reads (struct reader *r)
{
  uint32_t min = endpoint_info (r->ep)->min_block;

  while (r->error == 0 && r->next < r->length && r->free != NULL && channel_room (r->ch) > 0) {
    struct piece *p = r->free;
    uint64_t left = r->length - r->next;
    r->free = p->next;
    p->offset = r->next;
    p->length = left < PIECE ? (uint32_t)left : PIECE;
    r->next += p->length;
    r->active++;
    if (channel_read (r->ch, p->memory, (p->length + min - 1) / min * min, r->window + p->offset,
                      on_read, p)
        == -1)
      on_read (p, errno);
    channel_run (r->ch); /* what was in the page cache is digested while it is in the processor's */
  }
}

/* 0, or -1 when the channel is dead. */
static int
turn (struct reader *r)
{
  struct pollfd fds[CHANNEL_MAX_FDS];
  int timeout = 1000;
  unsigned n = channel_pollfds (r->ch, fds, CHANNEL_MAX_FDS, &timeout);

  if (poll (fds, n, timeout) == -1 && errno != EINTR) {
    r->error = errno;
    return -1;
  }
  if (channel_dispatch (r->ch, fds, n) == 0)
    return 0;
  if (r->error == 0)
    r->error = ESHUTDOWN;
  return -1;
}

/* Put the digests of the window at r->window into r->digests, or pass over zeroes: then *ZEROES are
 * so many bytes.  0 or -1. */
static int
read_window (struct reader *r, uint64_t left, uint64_t *zeroes)
{
  uint32_t block = digest_whole_key.block;

  *zeroes = 0;
  if (endpoint_info (r->ep)->can_status) {
    r->status_done = false;
    r->zero_length = 0;
    if (channel_status (r->ch, left, r->window, on_status, r) == 0)
      while (!r->status_done)
        if (turn (r) == -1)
          return -1;
    *zeroes = r->zero_length >= left ? left : r->zero_length / block * block;
    if (*zeroes > 0)
      return 0;
  }
  r->length = left < WINDOW ? left : WINDOW;
  r->next = 0;
  for (;;) {
    start_reads (r);
    if (r->active == 0 && (r->error || r->next == r->length))
      return r->error ? -1 : 0;
    if (turn (r) == -1)
      return -1;
  }
}

static int
compute (struct reader *r, const struct image_digest_options *o, struct digest_whole *w,
         char **error)
{
  uint64_t size = endpoint_info (r->ep)->size, zeroes;

  if (o->size != 0 && o->size < size)
    size = o->size;
  uint32_t block = digest_whole_key.block;

  while (r->window < size) {
    if (read_window (r, size - r->window, &zeroes) == -1) {
      const char *why = channel_error (r->ch);
      return text_error (error, "%s: cannot read at offset %" PRIu64 ": %s", endpoint_name (r->ep),
                         r->error_offset, why ? why : strerror (r->error));
    }
    if (zeroes > 0)
      digest_whole_add_zeroes (w, (zeroes + block - 1) / block);
    else
      digest_whole_add (w, r->digests, (r->length + block - 1) / block);
    r->window += zeroes > 0 ? zeroes : r->length;
    if (o->progress && !o->progress (o->opaque, r->window, size))
      return text_error (error, "%s: its digest was not computed to the end",
                         endpoint_name (r->ep));
  }
  return 0;
}

static int
read_and_compute (struct endpoint *ep, const struct image_digest_options *o,
                  char text[DIGEST_WHOLE_TEXT], char **error)
{
  struct reader r = { .ep = ep };
  struct digest_whole *w = digest_whole_new ();
  int result = -1;

  r.memory = buffers_new ((size_t)BUFFERS * PIECE);
  r.digests = malloc (WINDOW / digest_whole_key.block * DIGEST_SIZE);
  if (w == NULL || r.memory == NULL || r.digests == NULL)
    text_error (error, "out of memory");
  else if (endpoint_info (ep)->max_request < PIECE)
    text_error (error, "%s: its server takes no requests of %u bytes", endpoint_name (ep), PIECE);
  else if ((r.ch = channel_open (ep, NULL, error)) != NULL) {
    for (unsigned i = 0; i < BUFFERS; i++) {
      r.piece[i] = (struct piece){ .r = &r, .next = r.free, .memory = r.memory + i * PIECE };
      r.free = &r.piece[i];
    }
    result = compute (&r, o, w, error);
    channel_close (r.ch); /* completes what is in flight: the memory is still there */
  }
  if (result == 0)
    digest_whole_text (w, text);
  digest_whole_free (w);
  free (r.digests);
  free (r.memory);
  return result;
}

int
image_digest (struct endpoint *ep, const struct image_digest_options *o,
              char text[DIGEST_WHOLE_TEXT], bool *kept, char **error)
{
  struct image_record *before = o->path ? image_record_look (o->path, o->format) : NULL;

  *kept = before != NULL && image_record_read (before, text);
  if (*kept) {
    image_record_free (before);
    return 0;
  }
  int result = read_and_compute (ep, o, text, error);
  if (result == 0 && before != NULL) {
    struct image_record *after = image_record_look (o->path, o->format);
    if (after == NULL || !image_record_same (before, after))
      result = text_error (error, "%s was changed while it was read", o->path);
    else
      (void)image_record_write (before, text); /* if not, it is computed again */
    image_record_free (after);
  }
  image_record_free (before);
  return result;
}
