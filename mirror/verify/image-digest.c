/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The digest of a whole image.  See image-digest.h.
 *
 * The image is read in windows.  A block status tells the runs of zeroes, and with top_only those
 * of lower layers, that need not be read.  A window is the next few runs, as many as have WINDOW
 * bytes of data.  Within a window the reads end in any order; its digests are added in the order of
 * the disk when all are there.
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

enum kind { DATA, ZERO, LOWER };

/* Whole blocks, but for the end of the image. */
struct run {
  uint64_t begin, end; /* bytes */
  enum kind kind;
};

struct reader;

struct piece {
  struct reader *r;
  struct piece *next; /* free */
  uint8_t *memory;
  uint64_t offset;
  uint8_t *digests; /* where they belong */
  uint32_t length;
};

struct reader {
  struct endpoint *ep;
  struct channel *ch;
  bool top_only;
  uint64_t size;
  uint8_t *memory, *digests; /* digests: of one window's data */
  struct piece piece[BUFFERS], *free;
  unsigned active;
  /* Runs that are known, from the block `at` on. */
  struct run *runs;
  size_t nr, room;
  uint64_t at;
  size_t nr_window;    /* so many of the first runs are the window */
  size_t run;          /* the next read is in this one, */
  uint64_t next, slot; /* at this byte; its digests are the slot-th ones */
  int error;
  uint64_t error_offset;
  bool status_done;
};

static void
on_read (void *opaque, int err)
{
  struct piece *p = opaque;
  struct reader *r = p->r;

  if (err && r->error == 0) {
    r->error = err;
    r->error_offset = p->offset;
  } else if (!err) {
    /* The last block of an image is filled up with zeroes. */
    uint32_t block = digest_whole_key.block, whole = (p->length + block - 1) / block * block;
    memset (p->memory + p->length, 0, whole - p->length);
    digest_blocks (&digest_whole_key, p->memory, whole, p->digests);
  }
  p->next = r->free;
  r->free = p;
  r->active--;
}

static void
start_reads (struct reader *r)
{
  uint32_t min = endpoint_info (r->ep)->min_block, block = digest_whole_key.block;

  while (r->error == 0 && r->run < r->nr_window && r->free != NULL && channel_room (r->ch) > 0) {
    const struct run *run = &r->runs[r->run];
    if (run->kind != DATA || r->next >= run->end) {
      r->run++;
      r->next = r->run < r->nr_window ? r->runs[r->run].begin : 0;
      continue;
    }
    struct piece *p = r->free;
    uint64_t left = run->end - r->next;
    r->free = p->next;
    p->offset = r->next;
    p->digests = r->digests + r->slot * DIGEST_SIZE;
    p->length = left < PIECE ? (uint32_t)left : PIECE;
    r->next += p->length;
    r->slot += (p->length + block - 1) / block;
    r->active++;
    if (channel_read (r->ch, p->memory, (p->length + min - 1) / min * min, p->offset, on_read, p)
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

/* ---- runs ---- */

/* Room for one run more. */
static bool
make_room (struct reader *r)
{
  if (r->nr < r->room)
    return true;
  size_t room = r->room * 2 + 64;
  struct run *more = realloc (r->runs, room * sizeof *more);
  if (more == NULL) {
    r->error = ENOMEM;
    return false;
  }
  r->runs = more;
  r->room = room;
  return true;
}

static void
add_run (struct reader *r, enum kind kind, uint64_t begin, uint64_t end)
{
  struct run *last = r->nr > 0 ? &r->runs[r->nr - 1] : NULL;

  if (begin >= end)
    return;
  if (last != NULL && last->kind == kind && last->end >= begin)
    last->end = end > last->end ? end : last->end;
  else if (make_room (r))
    r->runs[r->nr++] = (struct run){ .begin = begin, .end = end, .kind = kind };
}

/* Where the first block begins that is not before X. */
static uint64_t
round_up (const struct reader *r, uint64_t x)
{
  uint32_t block = digest_whole_key.block;
  uint64_t up = (x + block - 1) / block * block;

  return up < r->size ? up : r->size;
}

/* An extent from BEGIN on.  Only whole blocks need not be read; what touches others is data. */
static void
add_extent (struct reader *r, enum kind kind, uint64_t begin, uint64_t end)
{
  uint32_t block = digest_whole_key.block;
  uint64_t from = round_up (r, begin), to = end >= r->size ? r->size : end / block * block;

  if (kind == DATA || from >= to) {
    add_run (r, DATA, begin / block * block, round_up (r, end));
    return;
  }
  if (begin < from)
    add_run (r, DATA, begin / block * block, from);
  add_run (r, kind, from, to);
  if (to < end && to < r->size)
    add_run (r, DATA, to, round_up (r, end));
}

static void
on_status (void *opaque, int err, const struct endpoint_extent *x, unsigned nr)
{
  struct reader *r = opaque;
  uint64_t pos = r->at;

  r->status_done = true;
  for (unsigned i = 0; !err && i < nr && pos < r->size; i++) {
    enum kind kind = r->top_only && x[i].lower ? LOWER : x[i].zero ? ZERO : DATA;
    add_extent (r, kind, pos, pos + x[i].length);
    pos += x[i].length;
  }
}

/* Learn some runs from r->at on.  0, or -1 when the channel is dead. */
static int
ask_runs (struct reader *r)
{
  if (endpoint_info (r->ep)->can_status) {
    r->status_done = false;
    if (channel_status (r->ch, r->size - r->at, r->at, on_status, r) == 0)
      while (!r->status_done)
        if (turn (r) == -1)
          return -1;
  }
  if (r->nr == 0)
    add_run (r, DATA, r->at, r->size - r->at > WINDOW ? r->at + WINDOW : r->size);
  return r->error == 0 ? 0 : -1;
}

/* How many of the runs are the next window; the last of them may have to be divided. */
static void
choose_window (struct reader *r)
{
  uint64_t data = 0;

  for (r->nr_window = 0; r->nr_window < r->nr && data < WINDOW; r->nr_window++) {
    struct run *run = &r->runs[r->nr_window];
    if (run->kind != DATA)
      continue;
    if (run->end - run->begin > WINDOW - data && make_room (r)) {
      run = &r->runs[r->nr_window]; /* it may have moved */
      memmove (run + 1, run, (r->nr - r->nr_window) * sizeof *run);
      r->nr++;
      run[0].end = run[1].begin = run->begin + WINDOW - data;
    }
    data += run->end - run->begin;
  }
  r->run = 0;
  r->next = r->runs[0].begin;
  r->slot = 0;
}

/* Put the digests of the next window into r->digests.  0 or -1. */
static int
read_window (struct reader *r)
{
  if (r->nr == 0 && ask_runs (r) == -1)
    return -1;
  choose_window (r);
  for (;;) { /* without memory for the division of a run nothing was started */
    start_reads (r);
    if (r->active == 0 && (r->error || r->run == r->nr_window))
      return r->error ? -1 : 0;
    if (turn (r) == -1)
      return -1;
  }
}

/* The window is read: hand its digests on, and forget its runs. */
static void
take_window (struct reader *r, const struct image_digest_options *o, struct digest_whole *w)
{
  uint32_t block = digest_whole_key.block;
  const uint8_t *digests = r->digests;

  for (size_t i = 0; i < r->nr_window; i++) {
    const struct run *run = &r->runs[i];
    uint64_t nr = (run->end - run->begin + block - 1) / block;
    r->at = run->end;
    if (run->kind == LOWER)
      continue;
    const uint8_t *data = run->kind == DATA ? digests : NULL;
    if (data != NULL) {
      digest_whole_add (w, data, nr);
      digests += nr * DIGEST_SIZE;
    } else
      digest_whole_add_zeroes (w, nr);
    if (o->blocks != NULL)
      o->blocks (o->opaque, run->begin / block, data, nr);
  }
  r->nr -= r->nr_window;
  memmove (r->runs, r->runs + r->nr_window, r->nr * sizeof *r->runs);
}

/* ---------------------------------------------------------------------------------------------- */

static int
compute (struct reader *r, const struct image_digest_options *o, struct digest_whole *w,
         char **error)
{
  while (r->at < r->size) {
    if (read_window (r) == -1) {
      const char *why = channel_error (r->ch);
      return text_error (error, "%s: cannot read at offset %" PRIu64 ": %s", endpoint_name (r->ep),
                         r->error_offset, why ? why : strerror (r->error));
    }
    take_window (r, o, w);
    if (o->progress && !o->progress (o->opaque, r->at, r->size))
      return text_error (error, "%s: its digest was not computed to the end",
                         endpoint_name (r->ep));
  }
  return 0;
}

static int
read_and_compute (struct endpoint *ep, const struct image_digest_options *o,
                  char text[DIGEST_WHOLE_TEXT], char **error)
{
  uint64_t size = endpoint_info (ep)->size;
  struct reader r = { .ep = ep,
                      .top_only = o->top_only,
                      .size = o->size != 0 && o->size < size ? o->size : size };
  struct digest_whole *w = digest_whole_new ();
  int result = -1;

  r.memory = buffers_new ((size_t)BUFFERS * PIECE);
  r.digests = malloc (WINDOW / digest_whole_key.block * DIGEST_SIZE);
  if (w == NULL || r.memory == NULL || r.digests == NULL)
    text_error (error, "out of memory");
  else if (endpoint_info (ep)->max_request < PIECE)
    text_error (error, "%s: its server takes no requests of %u bytes", endpoint_name (ep), PIECE);
  else if (o->top_only && !endpoint_info (ep)->can_layers)
    text_error (error, "%s: its server does not tell the image's layers apart", endpoint_name (ep));
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
  free (r.runs);
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
