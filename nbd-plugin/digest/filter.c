/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdkit-digest-filter: serves the digests of a disk's blocks beside the disk.
 *
 * A client that opens "digest@SEED.BLOCK" (digest/export-name.h) gets a read-only export whose
 * bytes are the digests.  All other names go to the layer below unchanged, and so do their
 * requests.
 *
 * What a client can ask for is bounded: the block size, and the bytes of the disk that one request
 * makes us read (DIGEST_REQUEST_MAX).  The disk is read in pieces that fit in a processor's cache.
 * Small pieces also mean that a writer which has to wait for a reader (some file systems lock the
 * file for each call) waits for one piece and not for a whole request.
 *
 * Each request stands alone, and nothing is shared between requests or connections: there is no
 * lock here.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <nbdkit-filter.h>

#include "digest/export-name.h"
#include "digest/hash.h"
#include "nbd-plugin/digest/extents.h"

#define PIECE (256u << 10)
/* Block status: each question to the layer below is about so much of the disk (nbdkit 1.32.5 aborts
 * near 4 GiB), and one request asks so many of them. */
#define STATUS_PIECE (1u << 30)
#define STATUS_PIECES 64

static int base_fd = -1; /* where the digest of the base image is told; -1: there is none */

enum kind { DISK, DIGESTS, BASE };

struct handle {
  enum kind kind;
  struct digest_key key;
  uint64_t size; /* of the disk, bytes */
  char description[DIGEST_DESCRIPTION_MAX];
  _Atomic bool refusal_logged;
};

static int
digest_config (nbdkit_next_config *next, nbdkit_backend *nxdata, const char *key, const char *value)
{
  if (strcmp (key, "digest-base-fd") != 0)
    return next (nxdata, key, value);
  if (nbdkit_parse_int (key, value, &base_fd) == -1)
    return -1;
  if (base_fd < 0 || fcntl (base_fd, F_SETFD, FD_CLOEXEC) == -1) {
    nbdkit_error ("%s=%s: this is no open file", key, value);
    return -1;
  }
  return 0;
}

/* ---- the export ------------------------------------------------------------------------------ */

/* If NAME is one of ours, replace it by that of the export that is meant.  -1: it is refused. */
static int
open_ours (struct handle *h, const char **name)
{
  if (!digest_name_is_ours (*name))
    return 0;
  if (digest_name_is_base (*name, name)) {
    h->kind = BASE;
    if (base_fd != -1)
      return 0;
    nbdkit_error ("this server has no digest of a base image");
    return -1;
  }
  h->kind = DIGESTS;
  const char *wrong = digest_name_parse (*name, &h->key, name);
  if (wrong == NULL)
    return 0;
  nbdkit_error ("an export \"" DIGEST_PREFIX "SEED.BLOCK\" is refused: %s", wrong);
  return -1;
}

static void *
digest_open (nbdkit_next_open *next, nbdkit_context *context, int readonly, const char *exportname,
             int is_tls)
{
  (void)is_tls;
  struct handle *h = calloc (1, sizeof *h);
  if (h == NULL) {
    nbdkit_error ("calloc: %m");
    return NULL;
  }
  if (open_ours (h, &exportname) == -1) {
    free (h);
    return NULL;
  }
  if (h->kind != DISK)
    readonly = 1;
  if (next (context, readonly, exportname) == -1) {
    free (h);
    return NULL;
  }
  return h;
}

static void
digest_close (void *handle)
{
  free (handle);
}

static int
digest_prepare (nbdkit_next *next, void *handle, int readonly)
{
  struct handle *h = handle;

  (void)readonly;
  if (h->kind != DIGESTS)
    return 0;
  int64_t size = next->get_size (next);
  /* can_extents: nbdkit asserts that it was asked before extents are. */
  if (size == -1 || next->can_extents (next) == -1)
    return -1;
  h->size = (uint64_t)size;
  snprintf (h->description, sizeof h->description, DIGEST_DESCRIPTION, h->size, h->key.block);
  return 0;
}

static int64_t
digest_get_size (nbdkit_next *next, void *handle)
{
  struct handle *h = handle;

  switch (h->kind) {
  case DIGESTS:
    return (int64_t)(digest_count (&h->key, h->size) * DIGEST_SIZE);
  case BASE:
    return DIGEST_BASE_SIZE;
  case DISK:
    break;
  }
  return next->get_size (next);
}

static const char *
digest_export_description (nbdkit_next *next, void *handle)
{
  struct handle *h = handle;

  return h->kind == DISK   ? next->export_description (next)
         : h->kind == BASE ? DIGEST_BASE_DESCRIPTION
                           : h->description;
}

/* The most that one request may ask for, in bytes of digests. */
static uint32_t
request_max (const struct handle *h)
{
  return DIGEST_REQUEST_MAX / h->key.block * DIGEST_SIZE;
}

static int
digest_block_size (nbdkit_next *next, void *handle, uint32_t *minimum, uint32_t *preferred,
                   uint32_t *maximum)
{
  struct handle *h = handle;

  if (h->kind != DIGESTS)
    return h->kind == BASE ? 0 : next->block_size (next, minimum, preferred, maximum);
  *minimum = 1;
  *maximum = request_max (h);
  *preferred = *maximum < 4096 ? *maximum : 4096;
  return 0;
}

static int
digest_can_write (nbdkit_next *next, void *handle)
{
  struct handle *h = handle;

  return h->kind != DISK ? 0 : next->can_write (next);
}

/* A request to cache the digests would cache as many bytes of the disk. */
static int
digest_can_cache (nbdkit_next *next, void *handle)
{
  struct handle *h = handle;

  return h->kind != DISK ? NBDKIT_CACHE_NONE : next->can_cache (next);
}

/* ---- requests -------------------------------------------------------------------------------- */

/* Read LENGTH bytes of the disk through BUFFER and put their digests into OUT. */
static int
read_digests (nbdkit_next *next, const struct handle *h, uint8_t *buffer, uint32_t piece,
              uint64_t offset, uint64_t length, uint8_t *out, int *err)
{
  while (length > 0) {
    uint32_t n = length < piece ? (uint32_t)length : piece;
    if (next->pread (next, buffer, n, offset, 0, err) == -1)
      return -1;
    digest_blocks (&h->key, buffer, n, out);
    out += digest_count (&h->key, n) * DIGEST_SIZE;
    offset += n;
    length -= n;
  }
  return 0;
}

/* A range that begins or ends within a digest: compute all that it touches, and copy a part. */
static int
read_unaligned (nbdkit_next *next, const struct handle *h, uint8_t *buffer, uint32_t piece,
                uint8_t *out, uint32_t count, uint64_t offset, int *err)
{
  while (count > 0) {
    uint64_t start = offset / DIGEST_SIZE * h->key.block;
    uint64_t length = h->size - start < h->key.block ? h->size - start : h->key.block;
    uint32_t skip = offset % DIGEST_SIZE;
    uint32_t n = DIGEST_SIZE - skip < count ? DIGEST_SIZE - skip : count;
    uint8_t digest[DIGEST_SIZE];

    if (read_digests (next, h, buffer, piece, start, length, digest, err) == -1)
      return -1;
    memcpy (out, digest + skip, n);
    out += n;
    offset += n;
    count -= n;
  }
  return 0;
}

static int
refuse (struct handle *h, uint32_t count, int *err)
{
  if (!atomic_exchange (&h->refusal_logged, true))
    nbdkit_error ("a request for %" PRIu32 " bytes of digests is refused: with blocks of %" PRIu32
                  " bytes the most is %" PRIu32 " (logged once a connection)",
                  count, h->key.block, request_max (h));
  *err = EINVAL;
  return -1;
}

static int
read_base (void *buf, uint32_t count, uint64_t offset, int *err)
{
  char text[DIGEST_BASE_SIZE + 1] = "";

  if (pread (base_fd, text, sizeof text, 0) == -1) {
    *err = errno;
    nbdkit_error ("the digest of the base image cannot be read: %m");
    return -1;
  }
  bool written = text[DIGEST_BASE_SIZE] != '\0';
  text[DIGEST_BASE_SIZE] = '\0';
  size_t length = strlen (text);
  if (written && length + sizeof DIGEST_BASE_WRITTEN <= DIGEST_BASE_SIZE)
    memcpy (text + length, DIGEST_BASE_WRITTEN, sizeof DIGEST_BASE_WRITTEN);
  memcpy (buf, text + offset, count);
  return 0;
}

/* The disk is going to be changed: from now on it holds more than its base.  0, or -1 with *ERR. */
static int
note_written (int *err)
{
  static _Atomic bool noted;

  if (base_fd == -1 || atomic_load (&noted))
    return 0;
  if (pwrite (base_fd, "w", 1, DIGEST_BASE_SIZE) != 1) {
    *err = EIO;
    nbdkit_error ("that the disk is written to cannot be noted: %m");
    return -1;
  }
  atomic_store (&noted, true);
  return 0;
}

static int
digest_pread (nbdkit_next *next, void *handle, void *buf, uint32_t count, uint64_t offset,
              uint32_t flags, int *err)
{
  struct handle *h = handle;

  if (h->kind == BASE)
    return read_base (buf, count, offset, err);
  if (h->kind == DISK)
    return next->pread (next, buf, count, offset, flags, err);
  if (count > request_max (h))
    return refuse (h, count, err);
  uint32_t piece = h->key.block > PIECE ? h->key.block : PIECE;
  uint8_t *buffer = malloc (piece);
  if (buffer == NULL) {
    nbdkit_error ("malloc: %m");
    *err = ENOMEM;
    return -1;
  }
  uint64_t start = offset / DIGEST_SIZE * h->key.block;
  uint64_t end = (offset + count) / DIGEST_SIZE * h->key.block;
  int r = offset % DIGEST_SIZE == 0 && count % DIGEST_SIZE == 0
              ? read_digests (next, h, buffer, piece, start,
                              (end < h->size ? end : h->size) - start, buf, err)
              : read_unaligned (next, h, buffer, piece, buf, count, offset, err);
  free (buffer);
  return r;
}

/* ---- block status ---------------------------------------------------------------------------- */

struct answer {
  struct nbdkit_extents *extents;
  uint64_t offset; /* of the next digest, bytes */
};

static int
add_run (void *opaque, uint64_t nr, bool zero)
{
  struct answer *a = opaque;
  uint32_t type = zero ? NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO : 0;

  if (nbdkit_add_extent (a->extents, a->offset, nr * DIGEST_SIZE, type) == -1)
    return -1;
  a->offset += nr * DIGEST_SIZE;
  return 0;
}

/* Ask the layer below about the next LENGTH bytes of the disk. */
static int
ask_below (nbdkit_next *next, struct digest_extents *x, uint32_t length, uint32_t flags,
           struct answer *a, int *err)
{
  uint64_t before = x->pos;
  struct nbdkit_extents *below = nbdkit_extents_new (x->pos, x->pos + length);

  if (below == NULL) {
    *err = errno;
    return -1;
  }
  int r = next->extents (next, length, x->pos, flags, below, err);
  for (size_t i = 0; r == 0 && i < nbdkit_extents_count (below); i++) {
    struct nbdkit_extent e = nbdkit_get_extent (below, i);
    r = digest_extents_add (x, e.length, (e.type & NBDKIT_EXTENT_ZERO) != 0, add_run, a);
    if (r == -1)
      *err = errno;
  }
  nbdkit_extents_free (below);
  if (r == 0 && x->pos == before) {
    nbdkit_error ("the layer below tells no block status at offset %" PRIu64, x->pos);
    *err = EIO;
    return -1;
  }
  return r;
}

static int
digest_extents (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset, uint32_t flags,
                struct nbdkit_extents *extents, int *err)
{
  struct handle *h = handle;

  if (h->kind == BASE)
    return nbdkit_add_extent (extents, offset, count, 0);
  if (h->kind == DISK)
    return next->extents (next, count, offset, flags, extents, err);
  uint64_t first = offset / DIGEST_SIZE;
  uint64_t end = (offset + count + DIGEST_SIZE - 1) / DIGEST_SIZE * h->key.block;
  if (end > h->size)
    end = h->size;
  struct digest_extents x = { .size = h->size, .block = h->key.block, .pos = first * h->key.block };
  struct answer a = { .extents = extents, .offset = first * DIGEST_SIZE };
  unsigned asked = 0;

  /* An answer may be short, but there must be one: at least one digest. */
  while (x.pos < end && (asked < STATUS_PIECES || a.offset <= offset)) {
    uint64_t left = end - x.pos;
    if (ask_below (next, &x, left < STATUS_PIECE ? (uint32_t)left : STATUS_PIECE, flags, &a, err)
        == -1)
      return -1;
    asked++;
    if ((flags & NBDKIT_FLAG_REQ_ONE) && a.offset > offset)
      break;
  }
  return 0;
}

/* ---- changes --------------------------------------------------------------------------------- */

static int
digest_pwrite (nbdkit_next *next, void *handle, const void *buf, uint32_t count, uint64_t offset,
               uint32_t flags, int *err)
{
  (void)handle;
  return note_written (err) == -1 ? -1 : next->pwrite (next, buf, count, offset, flags, err);
}

static int
digest_trim (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset, uint32_t flags,
             int *err)
{
  (void)handle;
  return note_written (err) == -1 ? -1 : next->trim (next, count, offset, flags, err);
}

static int
digest_zero (nbdkit_next *next, void *handle, uint32_t count, uint64_t offset, uint32_t flags,
             int *err)
{
  (void)handle;
  return note_written (err) == -1 ? -1 : next->zero (next, count, offset, flags, err);
}

static struct nbdkit_filter filter = {
  .name = "digest",
  .longname = "nbdkit digest filter",
  .description = "the digests of a disk's blocks, as an export beside the disk",
  .config = digest_config,
  .config_help = "digest-base-fd=<FD>   For nbdmirror receive, which computes the base's digest.",
  .open = digest_open,
  .close = digest_close,
  .prepare = digest_prepare,
  .get_size = digest_get_size,
  .export_description = digest_export_description,
  .block_size = digest_block_size,
  .can_write = digest_can_write,
  .can_cache = digest_can_cache,
  .pread = digest_pread,
  .pwrite = digest_pwrite,
  .trim = digest_trim,
  .zero = digest_zero,
  .extents = digest_extents,
};

NBDKIT_REGISTER_FILTER (filter)
