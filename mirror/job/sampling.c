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
#include "base/zero.h"
#include "mirror/endpoint/blocking.h"
#include "mirror/endpoint/buffers.h"
#include "mirror/job/sampling-data.h"
#include "mirror/job/sampling.h"

#define SAMPLE_BLOCK 4096u
#define BATCH SAMPLING_MAX_SPOTS
#define MEMORY_BYTES ((size_t)64 << 20) /* of a batch, at most */
#define ROUNDS 16                       /* to find blocks that are neither left out nor zero */
#define DEST_ROUNDS 3                   /* a hole, its end, and then the data behind it */

struct batch {
  const struct sampling *s;
  struct channel *ours, *dest;
  uint64_t our_size, size; /* of ours; to choose from */
  uint64_t blocks;
  uint32_t align;  /* where samples begin; a multiple of */
  uint32_t block;  /* bytes of a sample; a multiple of */
  uint32_t min;    /* the destination's minimum block */
  uint8_t *memory; /* of the destination, then ours */
  uint64_t taken;  /* while all blocks of a small disk are taken in turn */
  uint64_t most;   /* samples of all batches */
  unsigned max;    /* of one batch, at most BATCH */
  uint64_t offset[BATCH];
  bool theirs[BATCH]; /* chosen because the destination has data there */
  unsigned nr, outstanding;
  int error; /* the first one of the reads */
};

static uint8_t *
ours_of (const struct batch *b, unsigned i)
{
  return b->memory + (size_t)(b->max + i) * b->block;
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

static void
on_read (void *opaque, int err)
{
  struct batch *b = opaque;

  b->outstanding--;
  if (err && b->error == 0)
    b->error = err;
}

/* 0, or an errno of the first read that failed, once all that were sent to CH have ended. */
static int
await_reads (struct batch *b, struct channel *ch)
{
  int err = sync_drain (ch, &b->outstanding);

  return err ? err : b->error;
}

/* Send a read to CH.  0, or an errno. */
static int
send_read (struct batch *b, struct channel *ch, uint8_t *buf, uint32_t n, uint64_t offset)
{
  int err = sync_room (ch, &b->outstanding);

  if (err)
    return err;
  b->outstanding++;
  if (channel_read (ch, buf, n, offset, on_read, b) == -1)
    on_read (b, errno);
  return 0;
}

/* Read what ours has at the offsets of the samples from FIRST on, all at a time.  0, or an errno.
 */
static int
read_ours (struct batch *b, unsigned first)
{
  int err = 0;

  for (unsigned i = first; i < b->nr && err == 0; i++) {
    uint32_t have = length_at (b, b->our_size, b->offset[i]);
    memset (ours_of (b, i), 0, b->block);
    if (have > 0)
      err = send_read (b, b->ours, ours_of (b, i), have, b->offset[i]);
  }
  if (err == 0)
    err = await_reads (b, b->ours);
  for (unsigned i = first; err == 0 && i < b->nr; i++) { /* the disk may end within this block */
    uint32_t length = length_at (b, b->size, b->offset[i]);
    memset (ours_of (b, i) + length, 0, b->block - length);
  }
  return err;
}

/* The next blocks to look at, at most MAX.  Returns how many; 0: there is none. */
static unsigned
pick (struct batch *b, struct sampling_spot *spots, unsigned max)
{
  unsigned n = 0;

  for (; n < max; n++) {
    uint64_t random = b->taken;
    if (b->blocks <= b->most) {
      if (b->taken++ >= b->blocks)
        break;
    } else if (getrandom (&random, sizeof random, 0) != (ssize_t)sizeof random)
      random = (b->taken += UINT64_C (0x9e3779b97f4a7c15)); /* no secret is needed */
    spots[n] = (struct sampling_spot){ .offset = random % b->blocks * b->align };
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
    err = more ? sampling_find_data (ch, spots, nr, size, b->align) : 0;
  }
  return err;
}

/* What is wrong may be where ours holds nothing: half of the samples are taken where the
 * destination holds data.  Its line may be long, so it is asked in the FIRST round of a batch only;
 * and its server may have to walk through a whole hole, or all data, for each extent that it tells
 * of, so only for one at a time. */
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
  return find_data (b, b->s->dest, b->dest, spots, nr, DEST_ROUNDS);
}

/* Leave out what may differ, and read the rest of the N spots.  FIRST: every second one was chosen
 * by what the destination holds. */
static int
take_spots (struct batch *b, const struct sampling_spot *spots, unsigned n, bool first)
{
  const struct sampling *s = b->s;
  unsigned old = b->nr;

  for (unsigned i = 0; i < n; i++) {
    uint64_t offset = spots[i].offset;
    if (s->leave_out != NULL
        && s->leave_out (s->opaque, offset, length_at (b, b->size, offset), false))
      continue;
    b->theirs[b->nr] = first && i % 2 == 1;
    b->offset[b->nr++] = offset;
  }
  return read_ours (b, old);
}

/* Forget the samples from FIRST on that are zero and were not chosen for what the destination
 * holds: they say little. */
static void
drop_zeroes (struct batch *b, unsigned first)
{
  unsigned kept = first;

  for (unsigned i = first; i < b->nr; i++) {
    if (!b->theirs[i] && all_zero (ours_of (b, i), b->block))
      continue;
    if (kept != i)
      memcpy (ours_of (b, kept), ours_of (b, i), b->block);
    b->theirs[kept] = b->theirs[i];
    b->offset[kept++] = b->offset[i];
  }
  b->nr = kept;
}

/* Choose up to MAX samples and read what they should be.  *MORE: there may be more after them. */
static enum job_result
choose (struct batch *b, unsigned max, bool *more, char **error)
{
  bool prefer = b->s->prefer_data && b->blocks > b->most;

  b->nr = 0;
  for (unsigned round = 0; round < ROUNDS && b->nr < max; round++) {
    struct sampling_spot spots[BATCH];
    const struct endpoint *who = b->s->ours;
    unsigned old = b->nr, n = pick (b, spots, max - old);
    *more = n > 0;
    if (n == 0)
      break;
    int err = prefer ? prefer_data (b, spots, n, round == 0, &who) : 0;
    if (err == 0) {
      who = b->s->ours;
      err = take_spots (b, spots, n, round == 0);
    }
    if (err) {
      text_error (error, "%s: %s", endpoint_name (who), strerror (err));
      return who == b->s->ours ? JOB_FAILED : JOB_DEST_FAILED;
    }
    if (prefer && round < ROUNDS - 1)
      drop_zeroes (b, old);
  }
  return JOB_COMPLETED;
}

/* ---- comparing ---- */

/* Read the samples of the destination, all at a time: its line may be long. */
static int
read_theirs (struct batch *b)
{
  for (unsigned i = 0; i < b->nr; i++) {
    /* Where the destination is larger than the disk, its minimum block may reach beyond that. */
    uint32_t n = (length_at (b, b->size, b->offset[i]) + b->min - 1) / b->min * b->min;
    int err = send_read (b, b->dest, theirs_of (b, i), n, b->offset[i]);
    if (err)
      return err;
  }
  return await_reads (b, b->dest);
}

/* False with FOUND->where if one differs. */
static bool
all_equal (struct batch *b, struct sampled *found)
{
  const struct sampling *s = b->s;

  for (unsigned i = 0; i < b->nr; i++) {
    uint32_t length = length_at (b, b->size, b->offset[i]);
    if (memcmp (ours_of (b, i), theirs_of (b, i), length) == 0) {
      if (s->equal != NULL && !all_zero (ours_of (b, i), length))
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
  for (bool more = true; more && found->compared < b->most;) {
    uint64_t left = b->most - found->compared;
    if (b->s->signal != NULL && job_signal_ends (atomic_load (b->s->signal)))
      return text_error (error, "cancelled while blocks were compared"), JOB_CANCELLED;
    enum job_result result = choose (b, left < b->max ? (unsigned)left : b->max, &more, error);
    if (result != JOB_COMPLETED)
      return result;
    if (b->nr == 0 && b->blocks <= b->most)
      continue; /* all of these may differ; there are more */
    if (b->nr == 0)
      break;
    int err = read_theirs (b);
    if (err)
      return text_error (error, "%s: %s", endpoint_name (b->s->dest), strerror (err)),
             JOB_DEST_FAILED;
    if (!all_equal (b, found))
      return JOB_REFUSED;
    if (b->s->progress != NULL)
      b->s->progress (b->s->opaque, found->compared);
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
                     .most = s->most != 0 ? s->most : SAMPLING_BLOCKS,
                     .min = info->min_block };
  enum job_result result = JOB_FAILED;

  uint32_t ours = endpoint_info (s->ours)->min_block;
  b.block = info->min_block > SAMPLE_BLOCK ? info->min_block : SAMPLE_BLOCK;
  if (b.block < ours)
    b.block = ours;
  b.align = s->align > b.block ? s->align : b.block;
  b.blocks = (b.size + b.align - 1) / b.align;
  *found = (struct sampled){ .blocks = b.blocks };
  size_t room = MEMORY_BYTES / 2 / b.block;
  b.max = room > BATCH ? BATCH : room > 0 ? (unsigned)room : 1;
  b.memory = buffers_new ((size_t)2 * b.max * b.block);
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
