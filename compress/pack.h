/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Packs: the payload of a compressed write.
 *
 * A server of `nbdmirror receive` has exports whose names begin with RECEIVE_PACKED
 * (control/receive-exports.h).  Such an export is PACK_OFFSET bytes larger than its disk.  A write
 * at PACK_OFFSET + X carries a pack, and what that unpacks to is written at X.  All other requests,
 * and writes below PACK_OFFSET, are as for any export.
 *
 * A pack is one zstd frame (RFC 8878) that tells the length of its content, 1 to PACK_MAX_CONTENT
 * bytes, and ends with a checksum of it.  Zeroes may follow, where the server takes only multiples
 * of a block.  It needs no other pack, so a server can work on several at a time, and a lost
 * connection loses nothing but the requests that were in flight.
 *
 * What unpacks comes from the network: every pack is treated as hostile.  Unpacking needs no more
 * memory than the content and a constant, because the content's length is checked first and the
 * frame's window is never allocated.
 *
 * A struct packer and a struct unpacker belong to one thread at a time.
 */

#ifndef NBDMIRROR_COMPRESS_PACK_H
#define NBDMIRROR_COMPRESS_PACK_H

#include <stddef.h>
#include <stdint.h>

#define PACK_OFFSET (UINT64_C (1) << 62)
#define PACK_MAX_CONTENT (1u << 20)

struct packer;
struct unpacker;

/* NULL: out of memory. */
struct packer *packer_new (void);
void packer_free (struct packer *p); /* NULL is allowed */

/* Pack LEN bytes, 1 to PACK_MAX_CONTENT, into TO, which has room for SIZE.  LEVEL is zstd's, from
 * 1 on.  The length is made a multiple of ALIGN with zeroes.  Returns the length, or 0 if there is
 * not enough room: then the data are not worth to be packed. */
size_t pack (struct packer *p, int level, uint32_t align, const void *data, size_t len, void *to,
             size_t size);

struct unpacker *unpacker_new (void);
void unpacker_free (struct unpacker *u); /* NULL is allowed */

/* Unpack.  *CONTENT and *LENGTH are the result; the memory is the unpacker's, and lasts until its
 * next call.  NULL, or why it cannot be unpacked (a constant text). */
const char *unpack (struct unpacker *u, const void *from, size_t size, const void **content,
                    size_t *length);

#endif
