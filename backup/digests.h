/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The lists of digests (digest/list.h) that lie beside a disk's files.  A backup that read its
 * whole disk has a complete list, and another one a list of what its own file holds.  So the digest
 * of a disk after an incremental backup is known from the lists of its chain, and only what was
 * changed has to be read.
 *
 * A list never changes.  Its name holds a part of its own digest, and its backup's manifest names
 * both.  A list that is lost or damaged costs the next backup one reading of the whole disk, and
 * nothing else.  Whoever writes or removes lists of a disk holds the disk's lock.
 *
 * Functions return 0, or -1 with *ERROR (base/text.h).
 */

#ifndef NBDMIRROR_BACKUP_DIGESTS_H
#define NBDMIRROR_BACKUP_DIGESTS_H

#include <stdbool.h>
#include <stdint.h>

#include "backup/repository.h"
#include "digest/list.h"

/* ---- the lists of a chain ---- */

struct digests_chain {
  struct digest_list_kept *lists; /* the oldest first; owned, with its texts */
  unsigned nr;
};

/* The lists of which the digests of the disk ID in the backup NAME are made; the first is complete.
 * All of them have their own digests. */
int digests_chain_find (const struct repository *r, const struct backup_list *list,
                        const char *name, const char *id, struct digests_chain *c, char **error);
/* The lists of the NR links DISKS, which follow each other, the oldest first; those below a
 * complete one are left out.  *COMPLETE: there is one.  *BLOCKS: of the disk. */
int digests_chain_of_links (const struct repository *r, struct manifest_disk *const *disks,
                            size_t nr, struct digests_chain *c, bool *complete, uint64_t *blocks,
                            char **error);
/* Put one list more at the end: the one that D names.  -1: it names none, or memory is short. */
int digests_chain_add (const struct repository *r, const struct manifest_disk *d,
                       struct digests_chain *c, char **error);
void digests_chain_free (struct digests_chain *c);

/* ---- a new list ---- */

struct digests_new {
  const struct repository *repository;
  const char *id, *name; /* borrowed */
  char *temporary;
  struct digest_list *list;
};

/* Begin a list of the disk ID in the backup NAME; it has BLOCKS blocks. */
int digests_begin (struct digests_new *n, const struct repository *r, const char *id,
                   const char *name, bool complete, uint64_t blocks, char **error);
/* It is done: make it durable, and name it in D, which has named no other one.  The caller then
 * makes the names in the disk's folder durable (repository_sync()). */
int digests_end (struct digests_new *n, struct manifest_disk *d, char **error);
/* Forget it.  Nothing happens after digests_end(). */
void digests_drop (struct digests_new *n);

/* ---- lists that nobody needs ---- */

/* Remove those of the disk ID that no manifest in LIST names, and of the backup NAME only, unless
 * it is NULL.  With WITHOUT_DROPPED manifests of backups that are being pruned do not count. */
void digests_tidy (const struct repository *r, const struct backup_list *list, const char *id,
                   const char *name, bool without_dropped);

#endif
