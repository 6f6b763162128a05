/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Is the destination a copy of the base?  See base-proof.h.
 *
 * Its server serves the digests of its blocks, and a digest of the whole is made of these, as
 * digest/whole.h makes it of an image.  So both sides read all, each its own, and 256 bytes for
 * each MiB cross the line.
 */

#include "config.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "digest/export-name.h"
#include "mirror/endpoint/blocking.h"
#include "mirror/job/base-proof.h"

#define BLOCKS (DIGEST_REQUEST_MAX / (64u << 10)) /* in one request */
#define LOOK_MS 100

struct reading {
  const struct base_proof *p;
  struct channel *digests, *disk;
  struct digest_whole *whole;
  void (*progress) (void *opaque, uint64_t done);
  void *opaque;
  uint8_t *buffer; /* a request may still be in flight when it is given up */
  bool waits;
  int error;
};

/* The last block, when the disk ends within it: it counts as if zeroes followed. */
static int
add_tail (struct reading *r, uint64_t offset)
{
  const struct endpoint_info *info = endpoint_info (r->p->dest);
  uint32_t block = digest_whole_key.block, n = (uint32_t)(r->p->size - offset);
  uint64_t asked = endpoint_round_up (info, n);
  uint8_t digest[DIGEST_SIZE];

  if (asked > block)
    return EINVAL;
  uint8_t *buf = aligned_alloc (4096, block);
  if (buf == NULL)
    return ENOMEM;
  int err = sync_read (r->disk, buf, (uint32_t)asked, offset);
  memset (buf + n, 0, block - n);
  digest_blocks (&digest_whole_key, buf, block, digest);
  free (buf);
  if (err == 0)
    digest_whole_add (r->whole, digest, 1);
  return err;
}

static void
on_read (void *opaque, int err)
{
  struct reading *r = opaque;

  r->waits = false;
  r->error = err;
}

/* The server may need seconds for one request.  0, or an errno. */
static int
read_digests (struct reading *r, uint8_t *to, uint32_t nr, uint64_t first)
{
  r->waits = true;
  if (channel_read (r->digests, to, nr * DIGEST_SIZE, first * DIGEST_SIZE, on_read, r) == -1)
    return errno;
  while (r->waits) {
    struct pollfd fds[CHANNEL_MAX_FDS];
    int timeout = LOOK_MS;
    unsigned n = channel_pollfds (r->digests, fds, CHANNEL_MAX_FDS, &timeout);
    if (poll (fds, n, timeout) == -1 && errno != EINTR)
      return errno;
    if (channel_dispatch (r->digests, fds, n) == -1 && r->waits)
      return ESHUTDOWN;
    r->progress (r->opaque, first * digest_whole_key.block);
    if (job_signal_ends (atomic_load (r->p->signal)))
      return ECANCELED;
  }
  return r->error;
}

/* 0, or an errno: ECANCELED when it was told to stop. */
static int
add_all (struct reading *r)
{
  uint64_t nr = r->p->size / digest_whole_key.block;

  for (uint64_t done = 0; done < nr;) {
    uint32_t n = nr - done < BLOCKS ? (uint32_t)(nr - done) : BLOCKS;
    int err = read_digests (r, r->buffer, n, done);
    if (err)
      return err;
    digest_whole_add (r->whole, r->buffer, n);
    done += n;
    r->progress (r->opaque, done * digest_whole_key.block);
  }
  return r->p->size % digest_whole_key.block == 0 ? 0 : add_tail (r, nr * digest_whole_key.block);
}

struct endpoint *
copied_base_open (const struct base_proof *p, char **error)
{
  struct endpoint_options options = { .digests = &digest_whole_key };
  int errnum = 0;
  char *why = NULL;
  struct endpoint *ep = base_open_at_dest (p, &options, &errnum, &why);

  if (ep == NULL && errnum == ESTALE) {
    char *before = *error;
    *error = why;
    why = before;
  }
  text_free (why);
  if (ep == NULL || endpoint_info (ep)->digests_of >= p->size)
    return ep;
  endpoint_close (ep);
  return NULL;
}

enum job_result
copied_base_digest (const struct base_proof *p, struct endpoint *digests,
                    void (*progress) (void *opaque, uint64_t done), void *opaque,
                    char text[DIGEST_WHOLE_TEXT], char **error)
{
  struct reading r = { .p = p, .progress = progress, .opaque = opaque };
  int err = ENOMEM;

  r.buffer = aligned_alloc (4096, BLOCKS * DIGEST_SIZE);
  r.whole = digest_whole_new ();
  r.digests = channel_open (digests, NULL, NULL);
  r.disk = channel_open (p->dest, NULL, NULL);
  if (r.digests == NULL || r.disk == NULL)
    err = ECONNREFUSED;
  else if (r.whole != NULL && r.buffer != NULL)
    err = add_all (&r);
  if (err == 0)
    digest_whole_text (r.whole, text);
  if (r.digests != NULL)
    channel_close (r.digests);
  if (r.disk != NULL)
    channel_close (r.disk);
  digest_whole_free (r.whole);
  free (r.buffer);
  if (err == 0)
    return JOB_COMPLETED;
  if (err == ECANCELED) {
    text_error (error, "cancelled while the base images were compared");
    return JOB_CANCELLED;
  }
  text_error (error, "%s: its digests cannot be read: %s", p->dest_argv[0], strerror (err));
  return JOB_DEST_FAILED;
}
