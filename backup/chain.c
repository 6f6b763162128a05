/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The files that a backup needs.  See chain.h.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "backup/chain.h"
#include "base/text.h"

const struct backup_entry *
chain_newest (const struct backup_list *list, const char *id, const struct manifest_disk **disk)
{
  for (unsigned i = list->nr; i-- > 0;) {
    const struct manifest_disk *d = manifest_find_disk (&list->list[i].manifest, id);
    if (d != NULL && d->file != NULL && !list->list[i].manifest.is_dropped) {
      *disk = d;
      return &list->list[i];
    }
  }
  return NULL;
}

/* NULL, or what is wrong with the file of D. */
static char *
file_fault (const struct repository *r, const struct manifest_disk *d)
{
  CLEANUP_TEXT char *path = repository_path (r, d->file);
  struct stat st;

  if (stat (path, &st) == -1)
    return text_printf ("%s: %s", d->file, strerror (errno));
  if (!S_ISREG (st.st_mode))
    return text_printf ("%s is no regular file", d->file);
  if (d->file_digest != NULL && (uint64_t)st.st_size != d->file_bytes)
    return text_printf ("%s has %jd bytes, and %" PRIu64 " were written", d->file,
                        (intmax_t)st.st_size, d->file_bytes);
  return NULL;
}

char *
chain_fault (const struct repository *r, const struct backup_list *list, const char *name,
             const char *id)
{
  const char *expected = NULL;

  /* No chain has more links than there are backups, unless it is a ring. */
  for (unsigned i = 0; i <= list->nr; i++) {
    const struct backup_entry *e = repository_find (list, name);
    if (e == NULL)
      return text_printf ("the manifest of backup %s is missing", name);
    if (e->fault != NULL)
      return text_printf ("backup %s: %s", name, e->fault);
    const struct manifest_disk *d = manifest_find_disk (&e->manifest, id);
    /* The two manifests cannot be replaced at one instant, while the lower one gets another file.
     */
    bool other = expected != NULL && d != NULL && d->file != NULL && d->file_digest != NULL
                 && strcmp (d->file, expected) != 0;
    if (d == NULL || d->file == NULL || other)
      return text_printf ("backup %s does not hold what the next one is built upon", name);
    char *fault = file_fault (r, d);
    if (fault != NULL || d->full)
      return fault;
    name = d->parent_backup;
    expected = d->parent_file;
  }
  return text_copy ("the manifests name each other in a ring");
}
