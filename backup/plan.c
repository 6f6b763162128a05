/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Full or incremental?  See plan.h.
 */

#include "config.h"

#include <inttypes.h>
#include <stddef.h>

#include "backup/plan.h"
#include "base/text.h"

static char *
why_full (const struct backup_facts *f)
{
  if (f->mode == BACKUP_FULL)
    return text_copy ("asked for");
  if (f->size == 0)
    return text_copy ("a disk of 0 bytes has nothing to record");
  if (f->checkpoint == CHECKPOINT_NO_STATE)
    return text_copy ("no state file is kept (see --state), so nothing is recorded");
  if (f->parent == NULL)
    return text_copy ("there is no earlier backup of this disk");
  if (f->chain_fault != NULL)
    return text_printf ("the last backup cannot be built upon: %s", f->chain_fault);
  if (f->chain_files >= BACKUP_CHAIN_MAX)
    return text_printf ("the last backup's chain has %u files, and QEMU cannot read through many "
                        "more ('nbdmirror backup-prune' makes it shorter)",
                        f->chain_files);
  if (f->size != f->parent_size)
    return text_printf ("the disk had %" PRIu64 " bytes at the last backup and has %" PRIu64 " now",
                        f->parent_size, f->size);
  if (f->parent_checkpoint == NULL)
    return text_copy ("the last backup has added no checkpoint");
  if (f->checkpoint == CHECKPOINT_MISSING)
    return text_printf ("the disk has no checkpoint '%s' any more", f->parent_checkpoint);
  if (f->checkpoint == CHECKPOINT_OTHER)
    return text_printf ("the disk's checkpoint '%s' is not the last backup's",
                        f->parent_checkpoint);
  if (f->checkpoint == CHECKPOINT_INCONSISTENT)
    return text_printf ("checkpoint '%s' is inconsistent%s%s", f->parent_checkpoint,
                        f->checkpoint_reason != NULL ? ": " : "",
                        f->checkpoint_reason != NULL ? f->checkpoint_reason : "");
  return NULL;
}

bool
backup_plan (const struct backup_facts *f, char **reason)
{
  *reason = why_full (f);
  if (*reason == NULL)
    *reason = text_printf ("only what was changed since backup %s", f->parent);
  else
    return false;
  return true;
}
