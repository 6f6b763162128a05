/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See qcow2-new.h.  The file's clusters: the head with the name of the backing file, the table of
 * the blocks of reference counts, the first of these blocks, and the table of the first level,
 * which is empty.
 */

#include "config.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "backup/qcow2-head.h"
#include "backup/qcow2-layout.h"
#include "backup/qcow2-new.h"
#include "base/fd.h"
#include "base/text.h"

#define CLUSTER QCOW2_CLUSTER
#define SECTOR 512
#define L1_ENTRY_BYTES (CLUSTER / 8 * CLUSTER) /* of the disk */
#define L1_ENTRIES_MAX (32U << 20 >> 3)        /* what QEMU opens */

#define REFCOUNTS_AT CLUSTER
#define REFCOUNT_BLOCK_AT (2 * CLUSTER)
#define L1_AT (3 * CLUSTER)
#define REFCOUNT_ORDER 4 /* 16 bits a count */

#define COMPRESSION_TYPE_BIT (UINT64_C (1) << 3)
#define ZSTD 1

struct head {
  struct qcow2_fields fields;
  uint8_t compression, reserved[7];
  /* The extensions: the format of the backing file, and their end. */
  uint32_t format_type, format_length;
  char format[8];
  uint32_t end_type, end_length;
  char backing[QCOW2_NAME_MAX];
};

_Static_assert(offsetof (struct head, format_type) == 112, "the head has no gaps");

static void
fill_head (struct head *h, const char *backing, uint64_t size, uint32_t entries, bool zstd)
{
  *h = (struct head){ .compression = zstd ? ZSTD : 0 };
  h->fields = (struct qcow2_fields){ .magic = htobe32 (QCOW2_MAGIC),
                                     .version = htobe32 (3),
                                     .cluster_bits = htobe32 (QCOW2_CLUSTER_BITS),
                                     .size = htobe64 (size),
                                     .l1_entries = htobe32 (entries),
                                     .l1_offset = htobe64 (L1_AT),
                                     .refcounts_offset = htobe64 (REFCOUNTS_AT),
                                     .refcounts_clusters = htobe32 (1),
                                     .incompatible = htobe64 (zstd ? COMPRESSION_TYPE_BIT : 0),
                                     .refcount_order = htobe32 (REFCOUNT_ORDER),
                                     .length = htobe32 (offsetof (struct head, format_type)) };
  if (backing == NULL)
    return;
  h->format_type = htobe32 (QCOW2_EXTENSION_FORMAT);
  h->format_length = htobe32 (strlen ("qcow2"));
  memcpy (h->format, "qcow2", strlen ("qcow2"));
  h->fields.backing_offset = htobe64 (offsetof (struct head, backing));
  h->fields.backing_length = htobe32 ((uint32_t)strlen (backing));
  memcpy (h->backing, backing, strlen (backing));
}

/* 0, or -1 with errno. */
static int
write_at (int fd, const void *data, size_t length, uint64_t at)
{
  return lseek (fd, (off_t)at, SEEK_SET) == -1 ? -1 : fd_write_all (fd, data, length);
}

static int
write_clusters (int fd, const struct head *h, uint64_t clusters)
{
  uint64_t block = htobe64 (REFCOUNT_BLOCK_AT);
  uint16_t counts[CLUSTER / 2] = { 0 };

  for (uint64_t i = 0; i < clusters; i++)
    counts[i] = htobe16 (1);
  return ftruncate (fd, (off_t)(clusters * CLUSTER)) == 0 && write_at (fd, h, sizeof *h, 0) == 0
                 && write_at (fd, &block, sizeof block, REFCOUNTS_AT) == 0
                 && write_at (fd, counts, sizeof counts, REFCOUNT_BLOCK_AT) == 0
             ? 0
             : -1;
}

int
qcow2_new (const char *path, const char *backing, uint64_t size, bool zstd, char **error)
{
  uint64_t bytes = size / SECTOR * SECTOR + (size % SECTOR != 0 ? SECTOR : 0);
  uint64_t entries = bytes / L1_ENTRY_BYTES + (bytes % L1_ENTRY_BYTES != 0);
  struct head h;

  if (size / L1_ENTRY_BYTES >= L1_ENTRIES_MAX)
    return text_error (error, "%s: a qcow2 file cannot hold a disk of that size", path);
  if (backing != NULL && strlen (backing) > QCOW2_NAME_MAX)
    return text_error (error, "%s: the name of the backing file is too long", path);
  int fd = open (path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd == -1)
    return text_error (error, "%s: %s", path, strerror (errno));
  fill_head (&h, backing, bytes, (uint32_t)entries, zstd);
  uint64_t l1_clusters = (entries * 8 + CLUSTER - 1) / CLUSTER;
  if (write_clusters (fd, &h, L1_AT / CLUSTER + l1_clusters) == 0)
    return fd;
  text_error (error, "%s: %s", path, strerror (errno));
  fd_close (&fd);
  unlink (path);
  return -1;
}
