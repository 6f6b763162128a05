/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See drop-unused.h.
 */

#include "config.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/repository/drop-unused.h"

static bool
is_same (const char *a, const char *b)
{
  return a != NULL && b != NULL && strcmp (a, b) == 0;
}

/* Does the disk ID of the backup E lie upon FILE, or is that its own file? */
static bool
lies_upon (const struct backup_list *list, const struct backup_entry *e, const char *id,
           const char *file)
{
  /* No chain has more links than there are backups, unless it is a ring. */
  for (unsigned i = 0; e != NULL && i < list->nr; i++) {
    const struct manifest_disk *d = manifest_find_disk (&e->manifest, id);
    if (d == NULL || is_same (d->file, file) || is_same (d->parent_file, file))
      return true;
    if (d->full)
      return false;
    e = d->parent_backup != NULL ? repository_find (list, d->parent_backup) : NULL;
  }
  return true; /* what is not known is left alone */
}

static bool
is_needed (const struct backup_list *list, const char *id, const char *file)
{
  for (unsigned i = 0; i < list->nr; i++) {
    const struct backup_entry *e = &list->list[i];
    const struct manifest_disk *d = manifest_find_disk (&e->manifest, id);
    if (e->fault != NULL
        || (!e->manifest.is_dropped && d != NULL && d->file != NULL
            && lies_upon (list, e, id, file)))
      return true;
  }
  return false;
}

void
drop_unused (const struct repository *r, const struct backup_list *list)
{
  for (unsigned i = 0; i < list->nr; i++) {
    const struct manifest *m = &list->list[i].manifest;
    for (unsigned n = 0; m->is_dropped && n < m->nr_disks; n++) {
      const struct manifest_disk *d = &m->disks[n];
      if (d->file == NULL || is_needed (list, d->id, d->file))
        continue;
      CLEANUP_TEXT char *path = repository_path (r, d->file);
      if (unlink (path) == -1 && errno != ENOENT)
        cmd_warning ("%s: %s", path, strerror (errno));
    }
  }
}
