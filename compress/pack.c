/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Packs.  See pack.h.
 */

#include "config.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "compress/pack.h"

/* Frames of RFC 8878 begin with it.  The library may read those of versions before 1.0, too, and
 * does not look at their checksum. */
static const uint8_t magic[] = { 0x28, 0xb5, 0x2f, 0xfd };

/* The byte behind the magic number describes the header (RFC 8878, 3.1.1.1.1). */
#define DESCRIPTOR 4
#define HAS_CHECKSUM 0x04

struct packer {
  ZSTD_CCtx *zstd;
};

struct unpacker {
  ZSTD_DCtx *zstd;
  void *content;
  size_t room;
};

/* ---- packing ---- */

struct packer *
packer_new (void)
{
  struct packer *p = calloc (1, sizeof *p);

  if (p != NULL)
    p->zstd = ZSTD_createCCtx ();
  if (p != NULL && p->zstd != NULL
      && !ZSTD_isError (ZSTD_CCtx_setParameter (p->zstd, ZSTD_c_checksumFlag, 1)))
    return p;
  packer_free (p);
  return NULL;
}

void
packer_free (struct packer *p)
{
  if (p != NULL)
    ZSTD_freeCCtx (p->zstd);
  free (p);
}

size_t
pack (struct packer *p, int level, uint32_t align, const void *data, size_t len, void *to,
      size_t size)
{
  if (len == 0 || len > PACK_MAX_CONTENT
      || ZSTD_isError (ZSTD_CCtx_setParameter (p->zstd, ZSTD_c_compressionLevel, level)))
    return 0;
  size_t n = ZSTD_compress2 (p->zstd, to, size, data, len);
  if (ZSTD_isError (n))
    return 0;
  size_t odd = n % align, pad = odd == 0 ? 0 : align - odd;
  if (n + pad > size)
    return 0;
  memset ((char *)to + n, 0, pad);
  return n + pad;
}

/* ---- unpacking ---- */

struct unpacker *
unpacker_new (void)
{
  struct unpacker *u = calloc (1, sizeof *u);

  if (u != NULL)
    u->zstd = ZSTD_createDCtx ();
  if (u != NULL && u->zstd != NULL)
    return u;
  unpacker_free (u);
  return NULL;
}

void
unpacker_free (struct unpacker *u)
{
  if (u != NULL) {
    ZSTD_freeDCtx (u->zstd);
    free (u->content);
  }
  free (u);
}

static bool
make_room (struct unpacker *u, size_t size)
{
  if (size <= u->room)
    return true;
  free (u->content);
  u->content = malloc (size);
  u->room = u->content != NULL ? size : 0;
  return u->content != NULL;
}

const char *
unpack (struct unpacker *u, const void *from, size_t size, const void **content, size_t *length)
{
  const uint8_t *bytes = from;
  unsigned long long n = ZSTD_getFrameContentSize (from, size);

  if (n == ZSTD_CONTENTSIZE_ERROR || memcmp (bytes, magic, sizeof magic) != 0)
    return "it is no zstd frame";
  if (n == ZSTD_CONTENTSIZE_UNKNOWN || n == 0)
    return "it does not tell the length of its content";
  if (n > PACK_MAX_CONTENT)
    return "its content is too long";
  if ((bytes[DESCRIPTOR] & HAS_CHECKSUM) == 0)
    return "it has no checksum";
  size_t frame = ZSTD_findFrameCompressedSize (from, size);
  if (ZSTD_isError (frame))
    return "it is damaged, or cut off";
  for (size_t i = frame; i < size; i++)
    if (bytes[i] != 0)
      return "something stands behind its end";
  if (!make_room (u, (size_t)n))
    return "there is not enough memory";
  if (ZSTD_decompressDCtx (u->zstd, u->content, (size_t)n, from, frame) != n)
    return "it is damaged";
  *content = u->content;
  *length = (size_t)n;
  return NULL;
}
