/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The files that a backup needs.  See chain.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#include "backup/chain.h"
#include "backup/lock.h"
#include "backup/names.h"
#include "backup/qcow2-head.h"
#include "base/fd.h"
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

unsigned
chain_files (const struct backup_list *list, const char *name, const char *id)
{
  unsigned nr = 0;

  while (name != NULL && nr <= list->nr) {
    const struct backup_entry *e = repository_find (list, name);
    const struct manifest_disk *d = e != NULL ? manifest_find_disk (&e->manifest, id) : NULL;
    if (d == NULL)
      break;
    nr++;
    name = d->parent_backup;
  }
  return nr;
}

static bool
is_same_text (const char *a, const char *b)
{
  return a == b || (a != NULL && b != NULL && strcmp (a, b) == 0);
}

bool
chain_is_same (const struct backup_list *a, const struct backup_list *b, const char *name,
               const char *id)
{
  for (unsigned i = 0; name != NULL && i <= a->nr; i++) {
    const struct backup_entry *in_a = repository_find (a, name), *in_b = repository_find (b, name);
    if (in_a == NULL || in_b == NULL)
      return in_a == in_b;
    const struct manifest_disk *x = manifest_find_disk (&in_a->manifest, id);
    const struct manifest_disk *y = manifest_find_disk (&in_b->manifest, id);
    if (x == NULL || y == NULL)
      return x == y;
    if (in_a->manifest.is_dropped != in_b->manifest.is_dropped || x->full != y->full
        || !is_same_text (x->file, y->file) || !is_same_text (x->file_digest, y->file_digest)
        || !is_same_text (x->parent_backup, y->parent_backup)
        || !is_same_text (x->parent_file, y->parent_file))
      return false;
    name = x->parent_backup;
  }
  return true;
}

/* Has a prune forgotten the digest of a file in that chain, as it does before it writes there?  One
 * that was killed has left it like that. */
static bool
is_to_change (const struct backup_list *list, const char *name, const char *id)
{
  for (unsigned i = 0; name != NULL && i <= list->nr; i++) {
    const struct backup_entry *e = repository_find (list, name);
    const struct manifest_disk *d = e != NULL ? manifest_find_disk (&e->manifest, id) : NULL;
    if (d == NULL)
      return false;
    if (d->file_digest == NULL)
      return true;
    name = d->parent_backup;
  }
  return false;
}

bool
chain_is_being_pruned (const struct repository *r, const struct backup_list *list, const char *name,
                       const char *id)
{
  /* Before the manifests: one that ends in between has written others than those in LIST. */
  bool held = repository_is_pruned (r, id);
  struct backup_list now;

  if (repository_list (r, &now, NULL) == -1)
    return false;
  bool is = !chain_is_same (list, &now, name, id) || (held && is_to_change (&now, name, id));
  repository_list_free (&now);
  return is;
}

/* NULL, or what is wrong with the file of D. */
static char *
file_fault (const struct repository *r, const struct manifest_disk *d)
{
  CLEANUP_TEXT char *path = repository_path (r, d->file);
  struct stat st;

  if (lstat (path, &st) == -1)
    return text_printf ("%s: %s", d->file, strerror (errno));
  if (!S_ISREG (st.st_mode))
    return text_printf ("%s is no regular file", d->file);
  if (d->file_digest != NULL && (uint64_t)st.st_size != d->file_bytes)
    return text_printf ("%s has %jd bytes, and %" PRIu64 " were written", d->file,
                        (intmax_t)st.st_size, d->file_bytes);
  return NULL;
}

/* Is FILE that of the disk ID in a backup of which chain_fault_once() knows that it is good? */
static bool
is_known_good (const struct backup_list *list, const char *file, const char *id)
{
  for (unsigned i = list->nr; i-- > 0;) {
    const struct manifest_disk *d = manifest_find_disk (&list->list[i].manifest, id);
    if (d != NULL && d->chain_good && strcmp (d->file, file) == 0)
      return true;
  }
  return false;
}

/* NULL, or what is wrong with what the files say of each other, from FILE on down: QEMU believes
 * them, and not the manifests.  All of them lie in the folder of the disk ID, and there are not
 * more of them than backups. */
static char *
heads_fault (const struct repository *r, const struct backup_list *list, const char *file,
             const char *id, bool once)
{
  CLEANUP_TEXT char *folder = repository_path (r, id);
  CLEANUP_FD int dir = open (folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  CLEANUP_TEXT char *next = text_copy (file);
  char backing[QCOW2_NAME_MAX + 1], *error = NULL;

  if (dir == -1)
    return text_printf ("%s: %s", folder,
                        errno == ELOOP || errno == ENOTDIR ? "it is no directory of its own"
                                                           : strerror (errno));
  for (unsigned i = 0; i <= list->nr; i++) {
    if (qcow2_head_read (dir, strrchr (next, '/') + 1, backing, &error) == -1) {
      char *fault = text_printf ("%s/%s", id, error);
      text_free (error);
      return fault;
    }
    if (backing[0] == '\0')
      return NULL;
    char *below = text_printf ("%s/%s", id, backing);
    if (!backup_file_is_of_disk (below, id)) {
      text_free (below);
      return text_printf ("%s names '%s' as its backing file, which is no backup of this disk",
                          next, backing);
    }
    text_free (next);
    next = below;
    if (once && is_known_good (list, next, id))
      return NULL;
  }
  return text_printf ("%s: its backing files do not end", file);
}

/* The same of the manifests, and of the files that they name. */
static char *
manifests_fault (const struct repository *r, const struct backup_list *list, const char *name,
                 const char *id, bool once)
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
    if (once && d->chain_good)
      return NULL;
    char *fault = file_fault (r, d);
    if (fault != NULL || d->full)
      return fault;
    name = d->parent_backup;
    expected = d->parent_file;
  }
  return text_copy ("the manifests name each other in a ring");
}

static char *
look (const struct repository *r, const struct backup_list *list, const char *name, const char *id,
      bool once)
{
  char *fault = manifests_fault (r, list, name, id, once);

  if (fault != NULL)
    return fault;
  struct manifest_disk *d = manifest_find_disk (&repository_find (list, name)->manifest, id);
  if (once && d->chain_good)
    return NULL;
  fault = heads_fault (r, list, d->file, id, once);
  d->chain_good |= once && fault == NULL;
  return fault;
}

char *
chain_fault (const struct repository *r, const struct backup_list *list, const char *name,
             const char *id)
{
  return look (r, list, name, id, false);
}

char *
chain_fault_once (const struct repository *r, const struct backup_list *list, const char *name,
                  const char *id)
{
  return look (r, list, name, id, true);
}
