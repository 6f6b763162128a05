/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The lists of digests beside a disk's files.  See digests.h.
 */

#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backup/digests.h"
#include "backup/names.h"
#include "base/text.h"

/* ---- the lists of a chain ---- */

int
digests_chain_add (const struct repository *r, const struct manifest_disk *d,
                   struct digests_chain *c, char **error)
{
  if (d->digests_file == NULL)
    return text_error (error, "there is no list of its digests");
  struct digest_list_kept *more = realloc (c->lists, (c->nr + 1) * sizeof *more);
  if (more == NULL)
    return text_error (error, "out of memory");
  c->lists = more;
  more[c->nr++] = (struct digest_list_kept){ .path = repository_path (r, d->digests_file),
                                             .own = text_copy (d->digests_own) };
  return 0;
}

static void
turn_round (struct digests_chain *c)
{
  for (unsigned i = 0; i < c->nr / 2; i++) {
    struct digest_list_kept other = c->lists[i];
    c->lists[i] = c->lists[c->nr - 1 - i];
    c->lists[c->nr - 1 - i] = other;
  }
}

/* Go down from the backup NAME to a complete list; the newest comes first. */
static int
go_down (const struct repository *r, const struct backup_list *list, const char *name,
         const char *id, struct digests_chain *c, char **error)
{
  uint64_t blocks, blocks_before = 0;

  for (unsigned i = 0; i <= list->nr; i++) {
    CLEANUP_TEXT char *why = NULL;
    const struct backup_entry *e = repository_find (list, name);
    const struct manifest_disk *d = e != NULL ? manifest_find_disk (&e->manifest, id) : NULL;
    bool complete = false;
    if (d == NULL)
      return text_error (error, "there is no manifest of backup %s", name);
    if (digests_chain_add (r, d, c, &why) == -1
        || digest_list_check (&c->lists[c->nr - 1], &complete, &blocks, &why) == -1)
      return text_error (error, "backup %s: %s", name, why);
    if (i > 0 && blocks != blocks_before)
      return text_error (error, "backup %s: its list of digests is of another size", name);
    blocks_before = blocks;
    if (complete)
      return 0;
    if (d->full)
      return text_error (error, "backup %s: its list of digests is not complete", name);
    name = d->parent_backup;
  }
  return text_error (error, "the manifests name each other in a ring");
}

int
digests_chain_find (const struct repository *r, const struct backup_list *list, const char *name,
                    const char *id, struct digests_chain *c, char **error)
{
  *c = (struct digests_chain){ .nr = 0 };
  if (go_down (r, list, name, id, c, error) == -1) {
    digests_chain_free (c);
    return -1;
  }
  turn_round (c);
  return 0;
}

int
digests_chain_of_links (const struct repository *r, struct manifest_disk *const *disks, size_t nr,
                        struct digests_chain *c, bool *complete, uint64_t *blocks, char **error)
{
  int result = 0;

  *c = (struct digests_chain){ .nr = 0 };
  *complete = false;
  for (size_t i = nr; i-- > 0 && result == 0 && !*complete;)
    if (digests_chain_add (r, disks[i], c, error) == -1
        || digest_list_check (&c->lists[c->nr - 1], complete, blocks, error) == -1)
      result = -1;
  if (result == -1)
    digests_chain_free (c);
  turn_round (c);
  return result;
}

void
digests_chain_free (struct digests_chain *c)
{
  for (unsigned i = 0; i < c->nr; i++) {
    text_free ((char *)c->lists[i].path);
    text_free ((char *)c->lists[i].own);
  }
  free (c->lists);
  *c = (struct digests_chain){ .nr = 0 };
}

/* ---- a new list ---- */

int
digests_begin (struct digests_new *n, const struct repository *r, const char *id, const char *name,
               bool complete, uint64_t blocks, char **error)
{
  CLEANUP_TEXT char *file = backup_digests_path (id, name, NULL);

  *n = (struct digests_new){
    .repository = r, .id = id, .name = name, .temporary = repository_path (r, file)
  };
  n->list = digest_list_new (n->temporary, complete, blocks, error);
  if (n->list != NULL)
    return 0;
  digests_drop (n);
  return -1;
}

int
digests_end (struct digests_new *n, struct manifest_disk *d, char **error)
{
  char own[DIGEST_WHOLE_TEXT];

  int result = digest_list_end (n->list, own, error);
  n->list = NULL;
  if (result == 0) {
    char *file = backup_digests_path (n->id, n->name, own);
    CLEANUP_TEXT char *path = repository_path (n->repository, file);
    if (rename (n->temporary, path) == -1) {
      result = text_error (error, "%s: %s", n->temporary, strerror (errno));
      text_free (file);
    } else {
      d->digests_file = file;
      d->digests_own = text_copy (own);
      text_free (n->temporary);
      n->temporary = NULL;
    }
  }
  digests_drop (n);
  return result;
}

void
digests_drop (struct digests_new *n)
{
  digest_list_drop (n->list);
  if (n->temporary != NULL)
    unlink (n->temporary);
  text_free (n->temporary);
  *n = (struct digests_new){ .list = NULL };
}

/* ---- lists that nobody needs ---- */

/* Does a manifest name FILE?  One that cannot be read may name any. */
static bool
is_named (const struct backup_list *list, const char *file, bool without_dropped)
{
  for (unsigned i = 0; i < list->nr; i++) {
    const struct manifest *m = &list->list[i].manifest;
    if (list->list[i].fault != NULL)
      return true;
    for (unsigned d = 0; d < m->nr_disks && !(without_dropped && m->is_dropped); d++)
      if (m->disks[d].digests_file != NULL && strcmp (m->disks[d].digests_file, file) == 0)
        return true;
  }
  return false;
}

void
digests_tidy (const struct repository *r, const struct backup_list *list, const char *id,
              const char *name, bool without_dropped)
{
  CLEANUP_TEXT char *folder = repository_path (r, id);
  DIR *d = opendir (folder);
  const struct dirent *e;

  while (d != NULL && (e = readdir (d)) != NULL) {
    CLEANUP_TEXT char *file = text_printf ("%s/%s", id, e->d_name);
    if (backup_is_digests (file, id, name) && !is_named (list, file, without_dropped)) {
      CLEANUP_TEXT char *path = repository_path (r, file);
      unlink (path);
    }
  }
  if (d != NULL)
    closedir (d);
}
