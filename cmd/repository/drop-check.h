/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * May backups be pruned?  What is looked at before anything is changed, so that no backup is taken
 * along that is to stay.  Nothing here is changed, and no file is read.  EXIT_DONE, or an exit
 * status after a message.
 */

#ifndef NBDMIRROR_CMD_REPOSITORY_DROP_CHECK_H
#define NBDMIRROR_CMD_REPOSITORY_DROP_CHECK_H

#include <stddef.h>

#include "backup/drop-plan.h"
#include "backup/repository.h"

/* WAS is what the user or the rules have chosen from, and NOW what is there since the disks are
 * locked.  No manifest may be unreadable, since it may need any file; and no backup may have been
 * pruned or protected meanwhile. */
int drop_check_list (const struct backup_list *was, const struct backup_list *now);

/* Is each incremental backup of the disk ID that is kept built upon the one before it, leaving out
 * those that are not kept?  Else the plan is for another chain than the one that is there.  The
 * arrays have NR elements, the oldest first. */
int drop_check_order (const char *id, struct backup_entry *const *entry,
                      struct manifest_disk *const *disk, const struct drop_link *links, size_t nr);

#endif
