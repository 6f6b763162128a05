/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What becomes of the lists of digests (backup/digests.h) when backups are taken out of a chain.  A
 * list tells what a backup's file holds.  If the file takes over what those before it hold, its
 * list takes over theirs.
 */

#ifndef NBDMIRROR_CMD_REPOSITORY_DROP_DIGESTS_H
#define NBDMIRROR_CMD_REPOSITORY_DROP_DIGESTS_H

#include <stdbool.h>
#include <stddef.h>

#include "backup/repository.h"

/* DISKS are NR links of one chain that follow each other, the oldest first, and the file of the
 * last one, in the backup NAME, takes over what the others hold.  Give it a list that is made of
 * all of theirs; the old one is in *OLD then (for text_free()), to be removed after the manifest
 * was written.  If a list is missing or damaged, the last one has none afterwards, and the next
 * backup reads the whole disk. */
void drop_digests (const struct repository *r, const char *name, struct manifest_disk *const *disks,
                   size_t nr, bool becomes_full, char **old);

#endif
