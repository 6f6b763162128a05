/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See same-content.h.  The places are read all at a time, as far as the channel takes them: one by
 * one they would be the longest part of a small job's beginning.
 */

#include "config.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "mirror/endpoint/blocking.h"
#include "mirror/job/same-content.h"

#define COMPARE_PLACES 64
#define COMPARE_BYTES 4096u
/* Where the first file system usually begins: clones of one template differ there, if nowhere else.
 */
#define COMPARE_ALSO (UINT64_C (1) << 20)
#define COMPARE_ATTEMPTS 5

struct reads {
  unsigned outstanding;
  int error; /* the first one */
};

static void
on_read (void *opaque, int error)
{
  struct reads *r = opaque;

  r->outstanding--;
  if (error && r->error == 0)
    r->error = error;
}

/* The beginning of place I of COMPARE_PLACES, bytes. */
static uint64_t
place (uint64_t size, unsigned i)
{
  return i == 1 && size > COMPARE_ALSO ? COMPARE_ALSO
                                       : size / COMPARE_PLACES * i & ~(uint64_t)(COMPARE_BYTES - 1);
}

static uint32_t
place_bytes (uint64_t size, uint64_t offset)
{
  return size - offset < COMPARE_BYTES ? (uint32_t)(size - offset) : COMPARE_BYTES;
}

/* Read all places over CH into BUF, as many at a time as it takes.  False if that fails. */
static bool
read_places (struct channel *ch, uint64_t size, uint8_t *buf)
{
  struct reads r = { .outstanding = 0 };
  int err = 0;

  for (unsigned i = 0; i < COMPARE_PLACES && err == 0; i++) {
    uint64_t offset = place (size, i);
    err = sync_room (ch, &r.outstanding);
    if (err)
      break;
    r.outstanding++;
    if (channel_read (ch, buf + (size_t)i * COMPARE_BYTES, place_bytes (size, offset), offset,
                      on_read, &r)
        == -1)
      on_read (&r, errno);
  }
  int end = sync_drain (ch, &r.outstanding);
  return err == 0 && end == 0 && r.error == 0;
}

/* A place that differs is read again, alone. */
static bool
same_places (struct channel *a, struct channel *b, uint64_t size, uint8_t *buf)
{
  uint8_t *theirs = buf + (size_t)COMPARE_PLACES * COMPARE_BYTES;

  if (size == 0)
    return true;
  if (!read_places (a, size, buf) || !read_places (b, size, theirs))
    return false;
  for (unsigned i = 0; i < COMPARE_PLACES; i++) {
    uint64_t offset = place (size, i);
    uint32_t n = place_bytes (size, offset);
    uint8_t *p = buf + (size_t)i * COMPARE_BYTES, *q = theirs + (size_t)i * COMPARE_BYTES;
    bool same = memcmp (p, q, n) == 0;
    for (unsigned k = 1; !same && k < COMPARE_ATTEMPTS; k++)
      same = sync_read (a, p, n, offset) == 0 && sync_read (b, q, n, offset) == 0
             && memcmp (p, q, n) == 0;
    if (!same)
      return false;
  }
  return true;
}

bool
same_content (struct endpoint *a, struct endpoint *b)
{
  uint64_t size = endpoint_info (a)->size;
  uint8_t *buf = NULL;
  struct channel *ca = channel_open (a, NULL, NULL), *cb = channel_open (b, NULL, NULL);
  bool same
      = ca != NULL && cb != NULL && endpoint_info (b)->size == size
        && posix_memalign ((void **)&buf, COMPARE_BYTES, 2 * COMPARE_PLACES * COMPARE_BYTES) == 0
        && same_places (ca, cb, size, buf);

  if (ca)
    channel_close (ca);
  if (cb)
    channel_close (cb);
  free (buf);
  return same;
}
