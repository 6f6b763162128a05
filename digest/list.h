/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A file that lists digests of a disk's blocks (digest_whole_key), so that the digest of the whole
 * disk can be had again without reading what was not changed.
 *
 * A list is complete, or holds only the blocks that were changed since another list.  Blocks that a
 * complete list leaves out are zero.  Lists that follow each other are combined: of each block the
 * last list that has it counts.
 *
 * The file, with all numbers little-endian:
 *
 *   header   8 bytes "nbdmdig1"; u32 bytes in a block; u32 flags, 1: complete; u64 blocks of the
 *            disk
 *   runs     u64 first block; u32 blocks, at least 1; u32 kind, 0: zero, 1: data; then, of data, 16
 *            bytes a block.  Ascending, none overlaps another
 *
 * A list's own digest is that of its bytes, as `nbdmirror digest` shows it.  Whoever keeps a list
 * keeps its digest, too, since a list that is cut off at the end of a run looks like a whole one.
 *
 * Nothing here is shared between threads.  Errors are texts of base/text.h that name the file.
 */

#ifndef NBDMIRROR_DIGEST_LIST_H
#define NBDMIRROR_DIGEST_LIST_H

#include <stdbool.h>
#include <stdint.h>

#include "digest/whole.h"

/* ---- writing ---- */

struct digest_list;

/* Begin a list at PATH, which is made or emptied, of a disk of BLOCKS blocks.  NULL with *ERROR. */
struct digest_list *digest_list_new (const char *path, bool complete, uint64_t blocks,
                                     char **error);
/* The NR blocks from FIRST on, behind all that was added before; DIGESTS is NULL if they are zero.
 * An error is kept for digest_list_end(). */
void digest_list_add (struct digest_list *l, uint64_t first, const uint8_t *digests, uint64_t nr);
/* Make the list durable (its name is not), free L, and tell the list's own digest.  0, or -1 with
 * *ERROR. */
int digest_list_end (struct digest_list *l, char own[DIGEST_WHOLE_TEXT], char **error);
/* Free L of a list that is not wanted any more; the file stays.  NULL is allowed. */
void digest_list_drop (struct digest_list *l);

/* ---- reading ---- */

/* A list that was kept, and its own digest.  Borrowed. */
struct digest_list_kept {
  const char *path, *own;
};

/* Called with ascending runs; DIGESTS is NULL if they are zero. */
typedef void (*digest_list_sink) (void *opaque, uint64_t first, const uint8_t *digests,
                                  uint64_t nr);

/* Does LIST have its own digest, and is it complete?  0, or -1 with *ERROR. */
int digest_list_check (const struct digest_list_kept *list, bool *complete, uint64_t *blocks,
                       char **error);

/* Combine the NR lists, the oldest first, of which only the first may be complete.  SINK gets what
 * any of them has; if the first is complete, all blocks of the disk.  Their own digests are not
 * looked at.  Memory does not grow with the disk.  0, or -1 with *ERROR. */
int digest_list_combine (const struct digest_list_kept *lists, unsigned nr, digest_list_sink sink,
                         void *opaque, char **error);

#endif
