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

/* For each piece of data a server of a qcow2 chain looks through the tables of all layers above it,
 * as far as the question goes.  So its work grows with the square of the question's length.  In a
 * hole there is nothing that it could do so often. */
#define LONGEST_QUESTION (UINT64_C (1) << 24)
#define LONGEST_IN_HOLE (UINT64_C (1) << 30)

struct search;

struct question {
  struct search *search;
  uint64_t offset, length;
  uint64_t data, data_length; /* the answer: the first data; without any, where the hole ends, 0 */
};

struct search {
  struct question questions[SAMPLING_MAX_SPOTS];
  unsigned nr;
  unsigned outstanding;
  int error; /* the first one */
};

static uint64_t
random_below (uint64_t n)
{
  uint64_t random = 0;

  if (getrandom (&random, sizeof random, 0) != (ssize_t)sizeof random)
    return 0; /* the first block will do: no secret is needed */
  return random % n;
}

/* The question for SPOT, of which WHOLE bytes are left; that of an earlier spot if it is the same.
 */
static struct question *
question_for (struct search *s, const struct sampling_spot *spot, uint64_t whole)
{
  uint64_t most = spot->in_hole ? LONGEST_IN_HOLE : LONGEST_QUESTION;
  uint64_t length = whole < most ? whole : most;

  for (unsigned i = 0; i < s->nr; i++)
    if (s->questions[i].offset == spot->offset && s->questions[i].length == length)
      return &s->questions[i];
  struct question *q = &s->questions[s->nr++];
  *q = (struct question){ .search = s, .offset = spot->offset, .length = length };
  return q;
}

static void
on_status (void *opaque, int err, const struct endpoint_extent *extents, unsigned nr)
{
  struct question *q = opaque;

  q->search->outstanding--;
  if (err && q->search->error == 0)
    q->search->error = err;
  q->data = q->offset;
  for (unsigned i = 0; i < nr && q->data_length == 0; i++)
    if (extents[i].zero)
      q->data += extents[i].length;
    else
      q->data_length = extents[i].length;
}

/* 0, or an errno, once all questions are answered. */
static int
ask (struct search *s, struct channel *ch)
{
  for (unsigned i = 0; i < s->nr && s->error == 0; i++) {
    struct question *q = &s->questions[i];
    int err = sync_room (ch, &s->outstanding);
    if (err)
      return err;
    s->outstanding++;
    if (channel_first_extent (ch, q->length, q->offset, on_status, q) == -1)
      on_status (q, errno, NULL, 0);
  }
  int err = sync_drain (ch, &s->outstanding);
  return err ? err : s->error;
}

static void
move (struct sampling_spot *spot, const struct question *q, uint64_t size, uint32_t block)
{
  uint64_t at = q->data;

  if (q->data_length > 0 && at < size) {
    at += random_below (q->data_length < size - at ? q->data_length : size - at);
    spot->wanted = false;
  }
  spot->in_hole = at < size && at >= q->offset + q->length;
  spot->offset = at < size ? at / block * block : 0;
}

int
sampling_find_data (struct channel *ch, struct sampling_spot *spots, unsigned nr, uint64_t size,
                    uint32_t block)
{
  struct search s = { .nr = 0 };
  struct question *asked[SAMPLING_MAX_SPOTS];

  for (unsigned i = 0; i < nr; i++) {
    uint64_t whole = (size - spots[i].offset) / block * block;
    if (whole == 0) /* the tail stays where it is */
      spots[i].wanted = false;
    if (spots[i].wanted)
      asked[i] = question_for (&s, &spots[i], whole);
  }
  int err = ask (&s, ch);
  for (unsigned i = 0; i < nr && err == 0; i++)
    if (spots[i].wanted)
      move (&spots[i], asked[i], size, block);
  return err;
}
