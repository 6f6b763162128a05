/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The chain of a disk's backup: its file, and the files below it down to the full one.
 */

#ifndef NBDMIRROR_BACKUP_CHAIN_H
#define NBDMIRROR_BACKUP_CHAIN_H

#include "backup/repository.h"

/* The last backup in LIST that holds the disk ID, and the disk in it.  NULL: there is none. */
const struct backup_entry *chain_newest (const struct backup_list *list, const char *id,
                                         const struct manifest_disk **disk);

/* How many files the disk ID in the backup NAME consists of, by the manifests. */
unsigned chain_files (const struct backup_list *list, const char *name, const char *id);

/* Do the manifests in A and in B say the same of the chain of the disk ID in the backup NAME? */
bool chain_is_same (const struct backup_list *a, const struct backup_list *b, const char *name,
                    const char *id);

/* Has a prune changed the manifests of that chain since LIST was read, or is one at work there? Not
 * so where one was killed. */
bool chain_is_being_pruned (const struct repository *r, const struct backup_list *list,
                            const char *name, const char *id);

/* NULL, or what is missing of the disk ID in the backup NAME (for text_free()): a manifest, a file,
 * a
 * file that has not the size that was recorded, or one whose head names a file that is no backup of
 * this disk.  Only the heads of the files are read.  QEMU may open the chain only after this. */
char *chain_fault (const struct repository *r, const struct backup_list *list, const char *name,
                   const char *id);

/* The same, but it goes down only to a backup in which it has found nothing wrong before; LIST
 * remembers that.  For many backups of a list, the oldest first: then each file is looked at once,
 * however long the chain is. */
char *chain_fault_once (const struct repository *r, const struct backup_list *list,
                        const char *name, const char *id);

#endif
