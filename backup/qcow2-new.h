/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Making an empty qcow2 file, as `qemu-img create` makes it by default.  To run qemu-img for it
 * takes 20 ms and several flushes, of a file that holds nothing yet.
 *
 * The layout is that of QEMU's docs/interop/qcow2.txt.
 */

#ifndef NBDMIRROR_BACKUP_QCOW2_NEW_H
#define NBDMIRROR_BACKUP_QCOW2_NEW_H

#include <stdbool.h>
#include <stdint.h>

/* Make the file PATH, which must not be there, for a disk of SIZE bytes, rounded up to sectors.
 * BACKING is the name of a qcow2 file in the same directory, of at most QCOW2_NAME_MAX bytes
 * (qcow2-head.h), or NULL.  With ZSTD its clusters may be compressed by zstd.  A descriptor for
 * reading and writing it, or -1 with *ERROR (base/text.h), and then it is not there.  It is not
 * durable. */
int qcow2_new (const char *path, const char *backing, uint64_t size, bool zstd, char **error);

#endif
