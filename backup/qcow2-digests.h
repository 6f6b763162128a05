/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The digests of a qcow2 file, and of the blocks of the disk that it holds, with one reading.
 *
 * QEMU puts 64 KiB of a disk into a cluster of 64 KiB, which begins at a multiple of 64 KiB in the
 * file.  A digest is of 64 KiB, too (digest_whole_key).  So the digest of a block of the disk is
 * the digest of the block of the file to which the tables of the file refer, and the data need not
 * be read through a qemu-nbd a second time.
 *
 * Only files as QEMU makes them by default are understood.  Other cluster sizes, compressed
 * clusters, subclusters, snapshots, a separate data file and encryption are not; nor is a file
 * whose tables refer to what is not there.
 *
 * The layout is that of QEMU's docs/interop/qcow2.txt.
 */

#ifndef NBDMIRROR_BACKUP_QCOW2_DIGESTS_H
#define NBDMIRROR_BACKUP_QCOW2_DIGESTS_H

#include <stdbool.h>
#include <stdint.h>

#include "digest/list.h"

struct qcow2_digests {
  uint64_t size; /* bytes of the disk; the file's may be rounded up to a sector */
  /* The file has no backing file: blocks that it does not hold are zero, and told as such.
   * Otherwise they are left out. */
  bool complete;
  /* Called with ascending runs of what the file holds; DIGESTS is NULL if they are zero. */
  digest_list_sink blocks;
  /* Called now and then; false: stop. */
  bool (*go_on) (void *opaque);
  void *opaque;
};

/* Compute the digest of the file that FD is open for, which nobody writes to.  PATH names it in
 * errors.  1 with FILE; 0: the file is not understood, and O->blocks may have been called with some
 * of it; -1 with *ERROR (base/text.h).  Memory: 16 bytes for 64 KiB of the file, up to 256 MiB;
 * larger files are not understood either. */
int qcow2_digests (int fd, const char *path, const struct qcow2_digests *o,
                   char file[DIGEST_WHOLE_TEXT], char **error);

#endif
