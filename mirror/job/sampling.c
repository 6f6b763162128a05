/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Comparing random blocks.  See sampling.h.
 */

#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/text.h"
#include "mirror/endpoint/blocking.h"
#include "mirror/endpoint/buffers.h"
#include "mirror/job/sampling-data.h"
#include "mirror/job/sampling.h"

#define SAMPLE_BLOCK 4096u
#define BATCH SAMPLING_MAX_SPOTS
#define ROUNDS 16 /* to find blocks that are neither left out nor zero */

struct batch {
  const struct sampling *s;
  struct channel *ours, *dest;
  uint64_t our_size, size; /* of ours; to choose from */
  uint64_t blocks;
  uint32_t block;  /* bytes of a sample; a multiple of */
  uint32_t min;    /* the destination's minimum block */
  uint8_t *memory; /* of the destination, then ours */
  uint64_t taken;  /* while all blocks of a small disk are taken in turn */
  uint64_t offset[BATCH];
  unsigned nr, outstanding;
  int error; /* of the destination's */
};

static uint8_t *
ours_of (const struct batch *b, unsigned i)
{
  return b->memory + (size_t)(BATCH + i) * b->block;
}

static uint8_t *
theirs_of (const struct batch *b, unsigned i)
{
  return b->memory + (size_t)i * b->block;
}

static uint32_t
length_at (const struct batch *b, uint64_t size, uint64_t offset)
{
  uint64_t left = size > offset ? size - offset : 0;

  return left < b->block ? (uint32_t)left : b->block;
}

/* ---- choosing ---- */

/* What ours has at the offset of sample I.  0, or an errno. */
static int
read_ours (struct batch *b, unsigned i)
{
  uint64_t offset = b->offset[i];
  uint32_t length = length_at (b, b->size, offset), have = length_at (b, b->our_size, offset);
  uint8_t *buf = ours_of (b, i);

  memset (buf, 0, b->block);
  int err = have > 0 ? sync_read (b->ours, buf, have, offset) : 0;
  if (have > length) /* the disk ends within this block */
    memset (buf + length, 0, b->block - length);
  return err;
}

static bool
is_zero (const uint8_t *p, size_t n)
{
  return p[0] == 0 && memcmp (p, p + 1, n - 1) == 0;
}

/* The next blocks to look at, at most MAX.  Returns how many; 0: there is none. */
static unsigned
pick (struct batch *b, struct sampling_spot *spots, unsigned max)
{
  unsigned n = 0;

  for (; n < max; n++) {
    uint64_t random = b->taken;
    if (b->blocks <= SAMPLING_BLOCKS) {
      if (b->taken++ >= b->blocks)
        break;
    } else if (getrandom (&random, sizeof random, 0) != (ssize_t)sizeof random)
      random = (b->taken += UINT64_C (0x9e3779b97f4a7c15)); /* no secret is needed */
    spots[n] = (struct sampling_spot){ .offset = random % b->blocks * b->block };
  }
  return n;
}

/* Move the spots that are wanted to where CH, a channel of EP, has data; look ROUNDS times. */
static int
find_data (struct batch *b, const struct endpoint *ep, struct channel *ch,
           struct sampling_spot *spots, unsigned nr, unsigned rounds)
{
  const struct endpoint_info *info = endpoint_info (ep);
  uint64_t size = info->size < b->size ? info->size : b->size;
  bool more = info->can_status;
  int err = 0;

  for (unsigned i = 0; i < nr; i++)
    spots[i].wanted = spots[i].wanted && spots[i].offset < size;
  for (unsigned round = 0; round < rounds && more && err == 0; round++) {
    more = false;
    for (unsigned i = 0; i < nr; i++)
      more = more || spots[i].wanted;
    err = more ? sampling_find_data (ch, spots, nr, size, b->block, rounds > 1) : 0;
  }
  return err;
}

/* What is wrong may be where ours holds nothing: half of the samples are taken where the
 * destination holds data.  Its line may be long, so it is asked once a batch: in the FIRST round.
 */
static int
prefer_data (struct batch *b, struct sampling_spot *spots, unsigned nr, bool first,
             const struct endpoint **who)
{
  *who = b->s->ours;
  for (unsigned i = 0; i < nr; i++)
    spots[i].wanted = !first || i % 2 == 0;
  int err = find_data (b, b->s->ours, b->ours, spots, nr, ROUNDS);
  if (err || !first)
    return err;
  *who = b->s->dest;
  for (unsigned i = 0; i < nr; i++)
    spots[i].wanted = i % 2 == 1;
  return find_data (b, b->s->dest, b->dest, spots, nr, 1);
}

/* Choose up to MAX samples and read what they should be.  *MORE: there may be more after them. */
static enum job_result
choose (struct batch *b, unsigned max, bool *more, char **error)
{
  const struct sampling *s = b->s;
  bool prefer = s->prefer_data && b->blocks > SAMPLING_BLOCKS;

  b->nr = 0;
  for (unsigned round = 0; round < ROUNDS && b->nr < max; round++) {
    struct sampling_spot spots[BATCH];
    const struct endpoint *who = s->ours;
    unsigned n = pick (b, spots, max - b->nr);
    *more = n > 0;
    if (n == 0)
      break;
    int err = prefer ? prefer_data (b, spots, n, round == 0, &who) : 0;
    for (unsigned i = 0; i < n && err == 0; i++) {
      uint64_t offset = spots[i].offset;
      bool theirs = round == 0 && i % 2 == 1;
      if (s->leave_out != NULL
          && s->leave_out (s->opaque, offset, length_at (b, b->size, offset), false))
        continue;
      b->offset[b->nr] = offset;
      err = read_ours (b, b->nr);
      who = err ? s->ours : who;
      bool empty = prefer && !theirs && is_zero (ours_of (b, b->nr), b->block);
      b->nr += !empty || round == ROUNDS - 1;
    }
    if (err) {
      text_error (error, "%s: %s", endpoint_name (who), strerror (err));
      return who == s->ours ? JOB_FAILED : JOB_DEST_FAILED;
    }
  }
  return JOB_COMPLETED;
}

/* ---- comparing ---- */

static void
on_read (void *opaque, int err)
{
  struct batch *b = opaque;

  b->outstanding--;
  if (err && b->error == 0)
    b->error = err;
}

/* Read the samples of the destination, all at a time: its line may be long. */
static int
read_theirs (struct batch *b)
{
  for (unsigned i = 0; i < b->nr; i++) {
    /* Where the destination is larger than the disk, its minimum block may reach beyond that. */
    uint32_t n = (length_at (b, b->size, b->offset[i]) + b->min - 1) / b->min * b->min;
    int err = sync_room (b->dest, &b->outstanding);
    if (err)
      return err;
    b->outstanding++;
    if (channel_read (b->dest, theirs_of (b, i), n, b->offset[i], on_read, b) == -1)
      on_read (b, errno);
  }
  int err = sync_drain (b->dest, &b->outstanding);
  return err ? err : b->error;
}

/* False with FOUND->where if one differs. */
static bool
all_equal (struct batch *b, struct sampled *found)
{
  const struct sampling *s = b->s;

  for (unsigned i = 0; i < b->nr; i++) {
    uint32_t length = length_at (b, b->size, b->offset[i]);
    if (memcmp (ours_of (b, i), theirs_of (b, i), length) == 0) {
      if (s->equal != NULL && !is_zero (ours_of (b, i), length))
        s->equal (s->opaque, b->offset[i], ours_of (b, i), length);
    } else if (s->leave_out == NULL || !s->leave_out (s->opaque, b->offset[i], length, true)) {
      found->where = b->offset[i];
      return false;
    }
  }
  found->compared += b->nr;
  return true;
}

static enum job_result
compare (struct batch *b, struct sampled *found, char **error)
{
  for (bool more = true; more && found->compared < SAMPLING_BLOCKS;) {
    uint64_t left = SAMPLING_BLOCKS - found->compared;
    enum job_result result = choose (b, left < BATCH ? (unsigned)left : BATCH, &more, error);
    if (result != JOB_COMPLETED)
      return result;
    if (b->nr == 0)
      break;
    int err = read_theirs (b);
    if (err)
      return text_error (error, "%s: %s", endpoint_name (b->s->dest), strerror (err)),
             JOB_DEST_FAILED;
    if (!all_equal (b, found))
      return JOB_REFUSED;
  }
  return JOB_COMPLETED;
}

enum job_result
sampling_compare (const struct sampling *s, struct sampled *found, char **error)
{
  const struct endpoint_info *info = endpoint_info (s->dest);
  struct batch b = { .s = s,
                     .our_size = endpoint_info (s->ours)->size,
                     .size = s->size < info->size ? s->size : info->size,
                     .min = info->min_block };
  enum job_result result = JOB_FAILED;

  b.block = info->min_block > SAMPLE_BLOCK ? info->min_block : SAMPLE_BLOCK;
  b.blocks = (b.size + b.block - 1) / b.block;
  *found = (struct sampled){ .blocks = b.blocks };
  b.memory = buffers_new ((size_t)2 * BATCH * b.block);
  if (b.memory == NULL)
    text_error (error, "out of memory");
  else if ((b.ours = channel_open (s->ours, NULL, error)) != NULL) {
    b.dest = channel_open (s->dest, NULL, error);
    result = b.dest != NULL ? compare (&b, found, error) : JOB_DEST_FAILED;
  }
  if (b.dest != NULL)
    channel_close (b.dest);
  if (b.ours != NULL)
    channel_close (b.ours);
  free (b.memory);
  return result;
}
