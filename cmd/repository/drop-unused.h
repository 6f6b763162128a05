/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Files of backups that are being pruned, and that no other one is built upon.  They go before
 * anything is written into the files that stay: so a repository that is full gets the room for that
 * from the chains that go as a whole.
 */

#ifndef NBDMIRROR_CMD_REPOSITORY_DROP_UNUSED_H
#define NBDMIRROR_CMD_REPOSITORY_DROP_UNUSED_H

#include "backup/repository.h"

/* Remove these files.  The manifests in LIST can all be read, those of what goes are marked so on
 * the disk ("dropped"), and the caller holds the locks of their disks. */
void drop_unused (const struct repository *r, const struct backup_list *list);

#endif
