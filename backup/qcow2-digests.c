/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See qcow2-digests.h.
 */

#include "config.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup/qcow2-digests.h"
#include "backup/qcow2-layout.h"
#include "base/text.h"

#define VERSION_3 3
#define CLUSTER QCOW2_CLUSTER /* as a block of digest_whole_key */
#define SECTOR 512

#define ENTRIES (CLUSTER / 8) /* of a table of the second level */
#define OFFSET_MASK UINT64_C (0x00fffffffffffe00)
#define IS_COMPRESSED (UINT64_C (1) << 62)
#define IS_ZERO UINT64_C (1)

#define PIECE 4                          /* blocks that are read at once: they stay in the cache */
#define BLOCKS_MAX (UINT64_C (16) << 20) /* of the file: 1 TiB */

struct reading {
  const struct qcow2_digests *o;
  int fd;
  const char *path;
  uint64_t bytes, blocks;  /* of the file */
  uint8_t *digests;        /* of its blocks */
  uint64_t size, clusters; /* of the disk, whole sectors */
  uint64_t l1_offset, nr_tables;
};

static int
cannot_read (const struct reading *r, char **error)
{
  return text_error (error, "%s: cannot be read: %s", r->path, strerror (errno));
}

/* Read LENGTH bytes from AT on; what is behind the end of the file is zero. */
static int
read_at (const struct reading *r, void *to, size_t length, uint64_t at, char **error)
{
  for (size_t done = 0; done < length;) {
    ssize_t n = pread (r->fd, (uint8_t *)to + done, length - done, (off_t)(at + done));
    if (n == -1 && errno == EINTR)
      continue;
    if (n == -1)
      return cannot_read (r, error);
    if (n == 0) {
      memset ((uint8_t *)to + done, 0, length - done);
      break;
    }
    done += (size_t)n;
  }
  return 0;
}

/* ---- the file ---- */

/* 1: R knows the file; 0: it is not understood. */
static int
read_head (struct reading *r, char **error)
{
  struct qcow2_fields h;

  if (read_at (r, &h, sizeof h, 0, error) == -1)
    return -1;
  r->size = (r->o->size + SECTOR - 1) / SECTOR * SECTOR;
  r->clusters = digest_count (&digest_whole_key, r->size);
  r->nr_tables = (r->clusters + ENTRIES - 1) / ENTRIES;
  r->l1_offset = be64toh (h.l1_offset);
  return be32toh (h.magic) == QCOW2_MAGIC && be32toh (h.version) == VERSION_3
         && be32toh (h.cluster_bits) == QCOW2_CLUSTER_BITS && be64toh (h.size) == r->size
         && h.encryption == 0 && h.nr_snapshots == 0 && h.incompatible == 0
         && (h.backing_offset == 0) == r->o->complete && be32toh (h.l1_entries) >= r->nr_tables
         && r->l1_offset % CLUSTER == 0 && r->l1_offset <= r->bytes
         && r->nr_tables * 8 <= r->bytes - r->l1_offset;
}

/* The digests of all blocks of the file. */
static int
digest_file (struct reading *r, char text[DIGEST_WHOLE_TEXT], char **error)
{
  struct digest_whole *w = digest_whole_new ();
  uint8_t *memory = malloc (PIECE * CLUSTER);
  int result = w != NULL && memory != NULL ? 0 : text_error (error, "out of memory");

  for (uint64_t n = 0; result == 0 && n < r->blocks; n += PIECE) {
    uint64_t nr = r->blocks - n < PIECE ? r->blocks - n : PIECE;
    if (r->o->go_on != NULL && !r->o->go_on (r->o->opaque))
      result = text_error (error, "%s: its digest was not computed to the end", r->path);
    else if ((result = read_at (r, memory, nr * CLUSTER, n * CLUSTER, error)) == 0) {
      digest_blocks (&digest_whole_key, memory, nr * CLUSTER, r->digests + n * DIGEST_SIZE);
      digest_whole_add (w, r->digests + n * DIGEST_SIZE, nr);
    }
  }
  if (result == 0)
    digest_whole_text (w, text);
  free (memory);
  digest_whole_free (w);
  return result;
}

/* ---- the disk ---- */

/* NR blocks from FIRST on that the file does not hold. */
static void
tell_missing (const struct reading *r, uint64_t first, uint64_t nr)
{
  if (r->o->complete)
    r->o->blocks (r->o->opaque, first, NULL, nr);
}

/* The last block of the disk is shorter than its cluster, whose rest does not count. */
static int
digest_tail (const struct reading *r, uint64_t at, uint8_t digest[DIGEST_SIZE], char **error)
{
  uint8_t *block = calloc (1, CLUSTER);
  int result = block != NULL ? read_at (r, block, r->size % CLUSTER, at, error)
                             : text_error (error, "out of memory");

  if (result == 0)
    digest_blocks (&digest_whole_key, block, CLUSTER, digest);
  free (block);
  return result;
}

/* The block NR of the disk, of which a table says ENTRY.  1; 0: it is not understood; -1. */
static int
tell_block (const struct reading *r, uint64_t nr, uint64_t entry, char **error)
{
  uint64_t offset = entry & OFFSET_MASK;
  uint8_t tail[DIGEST_SIZE];

  if ((entry & IS_COMPRESSED) != 0)
    return 0;
  if ((entry & IS_ZERO) != 0) {
    r->o->blocks (r->o->opaque, nr, NULL, 1);
    return 1;
  }
  if (offset == 0) {
    tell_missing (r, nr, 1);
    return 1;
  }
  if (offset % CLUSTER != 0 || offset >= r->bytes)
    return 0;
  const uint8_t *digest = r->digests + offset / CLUSTER * DIGEST_SIZE;
  if (nr == r->clusters - 1 && r->size % CLUSTER != 0) {
    if (digest_tail (r, offset, tail, error) == -1)
      return -1;
    digest = tail;
  }
  r->o->blocks (r->o->opaque, nr, digest, 1);
  return 1;
}

/* The blocks from FIRST on, of which the table at OFFSET tells. */
static int
tell_table (const struct reading *r, uint64_t first, uint64_t offset, uint64_t *entries,
            char **error)
{
  uint64_t nr = r->clusters - first < ENTRIES ? r->clusters - first : ENTRIES;
  int result = 1;

  if (offset == 0) {
    tell_missing (r, first, nr);
    return 1;
  }
  if (offset % CLUSTER != 0 || offset >= r->bytes)
    return 0;
  if (read_at (r, entries, CLUSTER, offset, error) == -1)
    return -1;
  for (uint64_t i = 0; result == 1 && i < nr; i++)
    result = tell_block (r, first + i, be64toh (entries[i]), error);
  return result;
}

static int
tell_disk (const struct reading *r, char **error)
{
  uint64_t *l1 = malloc (r->nr_tables * 8 + 1), *entries = malloc (CLUSTER);
  int result = 1;

  if (l1 == NULL || entries == NULL)
    result = text_error (error, "out of memory");
  else if (read_at (r, l1, r->nr_tables * 8, r->l1_offset, error) == -1)
    result = -1;
  for (uint64_t i = 0; result == 1 && i < r->nr_tables; i++)
    result = tell_table (r, i * ENTRIES, be64toh (l1[i]) & OFFSET_MASK, entries, error);
  free (l1);
  free (entries);
  return result;
}

int
qcow2_digests (int fd, const char *path, const struct qcow2_digests *o,
               char file[DIGEST_WHOLE_TEXT], char **error)
{
  struct reading r = { .o = o, .fd = fd, .path = path };
  struct stat st;

  if (fstat (fd, &st) == -1)
    return cannot_read (&r, error);
  r.bytes = (uint64_t)st.st_size;
  r.blocks = digest_count (&digest_whole_key, r.bytes);
  int result = r.blocks <= BLOCKS_MAX ? read_head (&r, error) : 0;
  if (result != 1)
    return result;
  r.digests = malloc (r.blocks * DIGEST_SIZE);
  if (r.digests == NULL)
    result = text_error (error, "out of memory");
  else if ((result = digest_file (&r, file, error)) == 0)
    result = tell_disk (&r, error);
  free (r.digests);
  return result;
}
