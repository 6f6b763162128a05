/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Comparing random blocks.  See sampling.h.
 */

#include "config.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/text.h"
#include "mirror/endpoint/blocking.h"
#include "mirror/endpoint/buffers.h"
#include "mirror/job/sampling.h"

#define SAMPLE_BLOCK 4096u
#define BATCH 32
#define PICKS 16 /* to find one block that is neither left out nor zero */

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

/* The next block to compare.  False: there is none. */
static bool
pick (struct batch *b, uint64_t *offset)
{
  uint64_t random = b->taken;

  if (b->blocks <= SAMPLING_BLOCKS) {
    if (b->taken++ >= b->blocks)
      return false;
  } else if (getrandom (&random, sizeof random, 0) != (ssize_t)sizeof random)
    random = (b->taken += UINT64_C (0x9e3779b97f4a7c15)); /* no secret is needed */
  *offset = random % b->blocks * b->block;
  return true;
}

/* Choose sample I and read what it should be.  1, 0 if there is none, or -1 with errno. */
static int
choose (struct batch *b, unsigned i)
{
  const struct sampling *s = b->s;
  bool chosen = false;

  for (unsigned tries = 0; tries < PICKS; tries++) {
    uint64_t offset;
    if (!pick (b, &offset))
      break;
    if (s->leave_out != NULL
        && s->leave_out (s->opaque, offset, length_at (b, b->size, offset), false))
      continue;
    b->offset[i] = offset;
    int err = read_ours (b, i);
    if (err) {
      errno = err;
      return -1;
    }
    chosen = true;
    if (!s->prefer_data || b->blocks <= SAMPLING_BLOCKS || !is_zero (ours_of (b, i), b->block))
      break;
  }
  return chosen;
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
    b->outstanding++;
    if (channel_read (b->dest, theirs_of (b, i), n, b->offset[i], on_read, b) == -1)
      on_read (b, errno);
  }
  while (b->outstanding > 0) {
    struct pollfd fds[CHANNEL_MAX_FDS];
    int timeout = 1000;
    unsigned n = channel_pollfds (b->dest, fds, CHANNEL_MAX_FDS, &timeout);
    if (poll (fds, n, timeout) == -1 && errno != EINTR)
      b->error = errno;
    if (channel_dispatch (b->dest, fds, n) == -1)
      return b->error = ESHUTDOWN;
  }
  return b->error;
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
    for (b->nr = 0; b->nr < BATCH && more && found->compared + b->nr < SAMPLING_BLOCKS;) {
      int r = choose (b, b->nr);
      if (r == -1)
        return text_error (error, "%s: %s", endpoint_name (b->s->ours), strerror (errno)),
               JOB_FAILED;
      more = r == 1;
      b->nr += more;
    }
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
