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

/* NULL, or what is missing of the disk ID in the backup NAME (for text_free()): a manifest, a file,
 * or a file that has not the size that was recorded.  The files are looked at, but not read. */
char *chain_fault (const struct repository *r, const struct backup_list *list, const char *name,
                   const char *id);

#endif
