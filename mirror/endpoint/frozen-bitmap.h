/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Reads a dirty bitmap of QEMU's, which its NBD server offers as the metadata context
 * "qemu:dirty-bitmap:NAME" (docs/interop/nbd.txt of QEMU: bit 0 of the flags means "dirty").
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_FROZEN_BITMAP_H
#define NBDMIRROR_MIRROR_ENDPOINT_FROZEN_BITMAP_H

#include <stdint.h>

/* Call MARK for each dirty range, in bytes, of the bitmap NAME of the export EXPORT at the Unix
 * socket SOCKET.  The bitmap must not change meanwhile.  SIZE is the disk's in bytes; an export of
 * another size is refused.  Blocks; each request for TIMEOUT_MS at most.  0, or -1 with *ERROR
 * (text_free()): then some ranges may have been told, and not all. */
int frozen_bitmap_read (const char *socket, const char *export, const char *name, uint64_t size,
                        int timeout_ms,
                        void (*mark) (void *opaque, uint64_t offset, uint64_t length), void *opaque,
                        char **error);

#endif
