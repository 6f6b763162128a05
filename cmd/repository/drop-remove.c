/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Taking backups out of a repository: the files and manifests that are not needed any more.  See
 * drop-internal.h.
 */

#include "config.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "backup/begun.h"
#include "backup/digests.h"
#include "backup/lock.h"
#include "backup/names.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/repository/drop-internal.h"

/* Does any backup but E name FILE? */
static bool
is_needed (const struct dropping *x, const struct backup_entry *e, const char *file)
{
  const struct backup_list *list = &x->o->list;

  for (unsigned i = 0; i < list->nr; i++) {
    const struct manifest *m = &list->list[i].manifest;
    for (unsigned d = 0; d < m->nr_disks && &list->list[i] != e && !m->is_dropped; d++)
      if (m->disks[d].file != NULL && strcmp (m->disks[d].file, file) == 0)
        return true;
  }
  return false;
}

static void
remove_file (const struct dropping *x, const char *file)
{
  CLEANUP_TEXT char *path = repository_path (&x->o->store.repo, file);

  if (unlink (path) == -1 && errno != ENOENT)
    cmd_warning ("%s: %s", path, strerror (errno));
}

/* A backup that has become the full one has left the file that it had before.  Where a call was
 * interrupted then, this one may drop the backup: after it nobody knows of that file. */
static void
remove_old_file (const struct dropping *x, const struct backup_entry *e)
{
  for (unsigned d = 0; d < e->manifest.nr_disks; d++) {
    const struct manifest_disk *disk = &e->manifest.disks[d];
    CLEANUP_TEXT char *old = backup_file_path (disk->id, e->name, false);
    bool held = false;
    for (size_t i = 0; i < x->nr_lines; i++)
      held |= strcmp (x->lines[i].id, disk->id) == 0;
    if (held && disk->file != NULL && disk->full && strcmp (disk->file, old) != 0
        && !is_needed (x, e, old))
      remove_file (x, old);
  }
}

int
drop_remove (struct dropping *x)
{
  struct backup_list *list = &x->o->list;
  CLEANUP_TEXT char *folder = repository_path (&x->o->store.repo, "backups");
  CLEANUP_FD int lock = -1;
  char *error = NULL;

  for (unsigned i = 0; i < list->nr; i++)
    if (list->list[i].fault == NULL)
      remove_old_file (x, &list->list[i]);
  for (size_t i = 0; i < x->nr_lines; i++)
    digests_tidy (&x->o->store.repo, list, x->lines[i].id, NULL, true);
  if (repository_lock (&x->o->store.repo, NULL, &lock, &error) == -1)
    return drop_fail (error);
  for (unsigned i = 0; i < list->nr; i++) {
    const struct backup_entry *e = &list->list[i];
    if (!e->manifest.is_dropped)
      continue;
    for (unsigned d = 0; d < e->manifest.nr_disks; d++)
      if (e->manifest.disks[d].file != NULL && !is_needed (x, e, e->manifest.disks[d].file))
        remove_file (x, e->manifest.disks[d].file);
    for (unsigned f = 0; f < e->manifest.nr_includes; f++)
      remove_file (x, e->manifest.includes[f].file);
  }
  /* After a power cut there must be no file whose manifest is gone: nobody would remove it. */
  for (size_t i = 0; i < x->nr_lines; i++) {
    CLEANUP_TEXT char *path = repository_path (&x->o->store.repo, x->lines[i].id);
    if (repository_sync (path, &error) == -1)
      return drop_fail (error);
  }
  for (unsigned i = 0; i < list->nr; i++) {
    const struct backup_entry *e = &list->list[i];
    if (!e->manifest.is_dropped)
      continue;
    CLEANUP_TEXT char *files = text_printf ("%s/%s.files", folder, e->name);
    CLEANUP_TEXT char *manifest = text_printf ("backups/%s.json", e->name);
    rmdir (files);
    backup_begun_end (&x->o->store.repo, e->name); /* else its files are taken for a broken run's */
    remove_file (x, manifest);
  }
  return repository_sync (folder, &error) == 0 ? EXIT_DONE : drop_fail (error);
}
