/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proving the base.  See base-proof.h.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/clock.h"
#include "base/text.h"
#include "digest/export-name.h"
#include "mirror/endpoint/blocking.h"
#include "mirror/endpoint/buffers.h"
#include "mirror/job/base-proof.h"
#include "mirror/verify/image-digest.h"

#define SAMPLES 1000 /* blocks */
#define SAMPLE_BLOCK 4096u
#define BATCH 32
#define POLL_MS 100
#define TELL_MS 5000

struct proving {
  const struct base_proof *p;
  uint64_t told_ms;
};

static void
tell (struct proving *v, const char *whose, uint64_t done, uint64_t size)
{
  uint64_t now = clock_ms ();

  if (now - v->told_ms < TELL_MS)
    return;
  v->told_ms = now;
  CLEANUP_TEXT char *text
      = text_printf ("the digest of %s base image is being computed: %u %%", whose,
                     size ? (unsigned)(100 * (double)done / (double)size) : 100);
  v->p->message (v->p->opaque, JOB_NOTICE, text);
}

/* ---- by digests ------------------------------------------------------------------------------ */

static bool
on_progress (void *opaque, uint64_t done, uint64_t size)
{
  struct proving *v = opaque;

  tell (v, "our", done, size);
  return atomic_load (v->p->signal) == 0;
}

/* Wait until the destination has computed its digest.  CH reads what it tells. */
static enum job_result
wait_for_theirs (struct proving *v, struct channel *ch, char text[DIGEST_WHOLE_TEXT], bool *written,
                 char **error)
{
  const struct base_proof *p = v->p;
  _Alignas(4096) char told[4096];
  uint64_t done, size;

  while (atomic_load (p->signal) == 0) {
    int err = sync_read (ch, told, DIGEST_BASE_SIZE, 0);
    if (err) {
      text_error (error, "%s: %s", p->dest_argv[0], strerror (err));
      return JOB_DEST_FAILED;
    }
    told[DIGEST_BASE_SIZE - 1] = '\0';
    size_t length = strcspn (told, "\n");
    /* A text without its end was read while it was changed. */
    if (told[length] == '\n' && strncmp (told, "done ", 5) == 0
        && strspn (told + 5, "0123456789abcdef") == DIGEST_WHOLE_TEXT - 1
        && length == 5 + DIGEST_WHOLE_TEXT - 1) {
      memcpy (text, told + 5, DIGEST_WHOLE_TEXT - 1);
      text[DIGEST_WHOLE_TEXT - 1] = '\0';
      *written = strcmp (told + length + 1, DIGEST_BASE_WRITTEN) == 0;
      return JOB_COMPLETED;
    }
    if (told[length] == '\n' && strncmp (told, "failed ", 7) == 0) {
      text_error (error, "the destination cannot compute the digest of its base image: %.*s",
                  (int)length - 7, told + 7);
      return JOB_DEST_FAILED;
    }
    if (sscanf (told, "computing %" SCNu64 " %" SCNu64, &done, &size) == 2)
      tell (v, "the destination's", done, size);
    clock_sleep_ms (POLL_MS);
  }
  text_error (error, "cancelled while the base images were compared");
  return JOB_CANCELLED;
}

static enum job_result
prove_by_digests (struct proving *v, struct endpoint *theirs, char **error)
{
  const struct base_proof *p = v->p;
  const char *format = p->sync->base_format != NULL ? p->sync->base_format : "raw";
  const struct image_digest_options o
      = { .path = p->sync->base, .format = format, .opaque = v, .progress = on_progress };
  char our_text[DIGEST_WHOLE_TEXT], their_text[DIGEST_WHOLE_TEXT];
  bool kept, written = false;

  struct channel *ch = channel_open (theirs, NULL, error);
  if (ch == NULL)
    return JOB_DEST_FAILED;
  /* The destination computes meanwhile. */
  enum job_result result = JOB_COMPLETED;
  if (image_digest (p->base, &o, our_text, &kept, error) == -1)
    result = atomic_load (p->signal) != 0 ? JOB_CANCELLED : JOB_FAILED;
  else
    result = wait_for_theirs (v, ch, their_text, &written, error);
  channel_close (ch);
  if (result == JOB_COMPLETED && strcmp (our_text, their_text) != 0) {
    text_error (error,
                "refused: the destination has another base image: the digest of %s is %s, the"
                " destination's base has %s",
                p->sync->base, our_text, their_text);
    return JOB_REFUSED;
  }
  /* What an earlier job has sent is found by its own resumed workers alone (REGION_VISITED). */
  if (result == JOB_COMPLETED && written && !p->resumed) {
    text_error (error,
                "refused: %s has its base, but may hold more: it is no new image, or was written to"
                " since; use --sync compare",
                p->dest_argv[0]);
    return JOB_REFUSED;
  }
  return result;
}

/* ---- by a sample ----------------------------------------------------------------------------- */

struct batch {
  struct channel *base, *dest;
  uint64_t base_size, size; /* of the base; to choose from */
  uint32_t block;           /* bytes of a sample; a multiple of */
  uint32_t min;             /* the destination's minimum block */
  uint8_t *memory;
  uint64_t offset[BATCH];
  unsigned outstanding;
  int error; /* of the destination's */
};

static void
on_read (void *opaque, int err)
{
  struct batch *b = opaque;

  b->outstanding--;
  if (err && b->error == 0)
    b->error = err;
}

static uint32_t
sample_length (const struct batch *b, uint64_t size, unsigned i)
{
  uint64_t left = size > b->offset[i] ? size - b->offset[i] : 0;

  return left < b->block ? (uint32_t)left : b->block;
}

/* Read NR samples of the destination, all at a time: its line may be long. */
static int
read_batch (struct batch *b, unsigned nr)
{
  for (unsigned i = 0; i < nr; i++) {
    /* Where the destination is larger than the disk, its minimum block may reach beyond that. */
    uint32_t n = (sample_length (b, b->size, i) + b->min - 1) / b->min * b->min;
    b->outstanding++;
    if (channel_read (b->dest, b->memory + (size_t)i * b->block, n, b->offset[i], on_read, b) == -1)
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

/* 0, 1 with *WHERE if one differs, or -1 with errno of the base. */
static int
compare_batch (struct batch *b, unsigned nr, uint64_t *where)
{
  uint8_t *ours = b->memory + (size_t)BATCH * b->block;

  for (unsigned i = 0; i < nr; i++) {
    uint32_t length = sample_length (b, b->size, i), have = sample_length (b, b->base_size, i);
    memset (ours, 0, b->block); /* a base that ends is followed by zeroes */
    int err = have > 0 ? sync_read (b->base, ours, have, b->offset[i]) : 0;
    if (have > length) /* the disk ends within this block */
      have = length;
    if (err) {
      errno = err;
      return -1;
    }
    *where = b->offset[i];
    if (memcmp (ours + have, b->memory + (size_t)i * b->block + have, length - have) != 0
        || memcmp (ours, b->memory + (size_t)i * b->block, have < length ? have : length) != 0)
      return 1;
  }
  return 0;
}

static enum job_result
compare_samples (struct proving *v, struct batch *b, char **error)
{
  const struct base_proof *p = v->p;
  uint64_t blocks = (b->size + b->block - 1) / b->block, where = 0;
  uint64_t nr = blocks < SAMPLES ? blocks : SAMPLES;

  for (uint64_t done = 0; done < nr;) {
    unsigned n = nr - done < BATCH ? (unsigned)(nr - done) : BATCH;
    for (unsigned i = 0; i < n; i++) {
      uint64_t random = done + i;
      if (blocks > SAMPLES && getrandom (&random, sizeof random, 0) != (ssize_t)sizeof random)
        return text_error (error, "no random number: %s", strerror (errno)), JOB_FAILED;
      b->offset[i] = random % blocks * b->block;
    }
    int err = read_batch (b, n);
    if (err)
      return text_error (error, "%s: %s", endpoint_name (p->dest), strerror (err)), JOB_DEST_FAILED;
    int r = compare_batch (b, n, &where);
    if (r == -1)
      return text_error (error, "%s: %s", p->sync->base, strerror (errno)), JOB_FAILED;
    if (r == 1)
      return text_error (error,
                         "refused: the destination does not hold the base image: it differs from %s"
                         " in the block at offset %" PRIu64,
                         p->sync->base, where),
             JOB_REFUSED;
    done += n;
  }
  CLEANUP_TEXT char *text
      = text_printf ("--trust-base: %" PRIu64 " of the destination's %" PRIu64 " blocks were"
                     " compared with the base image, and are equal%s",
                     nr, blocks, nr < blocks ? ": this is a sample and no proof" : "");
  p->message (p->opaque, JOB_NOTICE, text);
  return JOB_COMPLETED;
}

static enum job_result
prove_by_sample (struct proving *v, char **error)
{
  const struct base_proof *p = v->p;
  const struct endpoint_info *info = endpoint_info (p->dest);
  struct batch b = { .base_size = endpoint_info (p->base)->size,
                     .size = p->size < info->size ? p->size : info->size,
                     .min = info->min_block };
  enum job_result result = JOB_FAILED;

  b.block = info->min_block > SAMPLE_BLOCK ? info->min_block : SAMPLE_BLOCK;
  b.memory = buffers_new ((size_t)(BATCH + 1) * b.block);
  if (b.memory == NULL)
    text_error (error, "out of memory");
  else if ((b.base = channel_open (p->base, NULL, error)) != NULL) {
    b.dest = channel_open (p->dest, NULL, error);
    result = b.dest != NULL ? compare_samples (v, &b, error) : JOB_DEST_FAILED;
  }
  if (b.dest != NULL)
    channel_close (b.dest);
  if (b.base != NULL)
    channel_close (b.base);
  free (b.memory);
  return result;
}

/* ---------------------------------------------------------------------------------------------- */

enum job_result
base_prove (const struct base_proof *p, char **error)
{
  struct proving v = { .p = p, .told_ms = clock_ms () };
  struct endpoint_options options = { .connect_timeout_ms = p->dest_options->connect_timeout_ms,
                                      .request_timeout_ms = p->dest_options->request_timeout_ms,
                                      .base_digest = true };
  int errnum = 0;
  char *why = NULL;

  struct endpoint *theirs = endpoint_open (p->dest_argv, p->nr_dest, &options, &errnum, &why);
  if (theirs != NULL) {
    enum job_result result = prove_by_digests (&v, theirs, error);
    endpoint_close (theirs);
    return result;
  }
  if (p->sync->trust_base) {
    text_free (why);
    return p->resumed ? JOB_COMPLETED : prove_by_sample (&v, error);
  }
  text_error (
      error,
      "refused: whether the destination has the same base image is not known (%s); nbdmirror"
      " receive --backing tells it; --trust-base goes on after a look at %d random blocks",
      why, SAMPLES);
  text_free (why);
  return JOB_REFUSED;
}
