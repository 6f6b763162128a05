/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See drop-check.h.
 */

#include "config.h"

#include <string.h>

#include "cmd/cmd.h"
#include "cmd/repository/drop-check.h"

int
drop_check_list (const struct backup_list *was, const struct backup_list *now)
{
  for (unsigned i = 0; i < now->nr; i++)
    if (now->list[i].fault != NULL) {
      cmd_say ("nothing was pruned: it is not known which files backup %s needs: %s",
               now->list[i].name, now->list[i].fault);
      return EXIT_DIFFERENT;
    }
  for (unsigned i = 0; i < was->nr; i++) {
    const struct backup_entry *old = &was->list[i], *e = repository_find (now, old->name);
    if (e != NULL && e->manifest.is_dropped == old->manifest.is_dropped
        && (e->manifest.is_protected == old->manifest.is_protected || !e->manifest.is_protected))
      continue;
    if (e == NULL && old->manifest.is_dropped)
      continue; /* somebody has come to the end of it */
    cmd_say ("nothing was pruned: backup %s was pruned or protected meanwhile; call this again",
             old->name);
    return EXIT_ERROR;
  }
  return EXIT_DONE;
}

int
drop_check_order (const char *id, struct backup_entry *const *entry,
                  struct manifest_disk *const *disk, const struct drop_link *links, size_t nr)
{
  for (size_t i = 0; i < nr; i++) {
    size_t below = i;
    if (!links[i].kept || disk[i]->full)
      continue;
    while (below > 0 && strcmp (entry[below - 1]->name, disk[i]->parent_backup) != 0
           && !links[below - 1].kept)
      below--;
    if (below > 0 && strcmp (entry[below - 1]->name, disk[i]->parent_backup) == 0)
      continue;
    cmd_say ("nothing was pruned: backup %s of '%s' is not built upon the one before it, but upon"
             " %s",
             entry[i]->name, id, disk[i]->parent_backup);
    return EXIT_DIFFERENT;
  }
  return EXIT_DONE;
}
