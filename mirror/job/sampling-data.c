/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See sampling-data.h.
 */

#include "config.h"

#include <errno.h>
#include <stddef.h>
#include <sys/random.h>

#include "mirror/endpoint/blocking.h"
#include "mirror/job/sampling-data.h"

#define LONGEST_QUESTION (UINT64_C (1) << 31)

struct search {
  uint64_t size;
  uint32_t block;
  unsigned outstanding;
  int error; /* the first one */
};

struct question {
  struct search *search;
  struct sampling_spot *spot;
};

static uint64_t
random_below (uint64_t n)
{
  uint64_t random = 0;

  if (getrandom (&random, sizeof random, 0) != (ssize_t)sizeof random)
    return 0; /* the first block will do: no secret is needed */
  return random % n;
}

static void
on_status (void *opaque, int err, const struct endpoint_extent *extents, unsigned nr)
{
  const struct question *q = opaque;
  struct search *s = q->search;
  uint64_t at = q->spot->offset;

  s->outstanding--;
  if (err) {
    if (s->error == 0)
      s->error = err;
    return;
  }
  for (unsigned i = 0; i < nr && at < s->size; at += extents[i++].length) {
    if (extents[i].zero)
      continue;
    uint64_t length = extents[i].length < s->size - at ? extents[i].length : s->size - at;
    uint64_t block = (at + random_below (length)) / s->block;
    q->spot->offset = block * s->block;
    q->spot->wanted = false;
    return;
  }
  q->spot->offset = at < s->size ? at / s->block * s->block : 0;
}

int
sampling_find_data (struct channel *ch, struct sampling_spot *spots, unsigned nr, uint64_t size,
                    uint32_t block)
{
  struct search s = { .size = size, .block = block };
  struct question questions[SAMPLING_MAX_SPOTS];

  for (unsigned i = 0; i < nr && s.error == 0; i++) {
    uint64_t whole = (size - spots[i].offset) / block * block;
    if (whole == 0) /* the tail stays where it is */
      spots[i].wanted = false;
    if (!spots[i].wanted)
      continue;
    int err = sync_room (ch, &s.outstanding);
    if (err)
      return err;
    questions[i] = (struct question){ .search = &s, .spot = &spots[i] };
    s.outstanding++;
    uint64_t length = whole < LONGEST_QUESTION ? whole : LONGEST_QUESTION;
    if (channel_first_extent (ch, length, spots[i].offset, on_status, &questions[i]) == -1)
      on_status (&questions[i], errno, NULL, 0);
  }
  int err = sync_drain (ch, &s.outstanding);
  return err ? err : s.error;
}
