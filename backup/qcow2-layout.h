/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * How a qcow2 file begins: QEMU's docs/interop/qcow2.txt.  All numbers are big-endian.
 */

#ifndef NBDMIRROR_BACKUP_QCOW2_LAYOUT_H
#define NBDMIRROR_BACKUP_QCOW2_LAYOUT_H

#include <stdint.h>

#define QCOW2_MAGIC 0x514649fbU
#define QCOW2_EXTENSION_END 0U
#define QCOW2_EXTENSION_FORMAT 0xe2792acaU /* of the backing file */

/* The cluster size of the files that we make. */
#define QCOW2_CLUSTER_BITS 16
#define QCOW2_CLUSTER (UINT64_C (1) << QCOW2_CLUSTER_BITS)

/* The head of version 3, as far as every file of that version has it. */
struct qcow2_fields {
  uint32_t magic, version;
  uint64_t backing_offset;
  uint32_t backing_length, cluster_bits;
  uint64_t size;
  uint32_t encryption, l1_entries;
  uint64_t l1_offset, refcounts_offset;
  uint32_t refcounts_clusters, nr_snapshots;
  uint64_t snapshots_offset, incompatible, compatible, autoclear;
  uint32_t refcount_order, length;
};

_Static_assert(sizeof (struct qcow2_fields) == 104, "the head has no gaps");

#endif
