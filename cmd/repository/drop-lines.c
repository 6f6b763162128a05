/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Taking backups out of a repository: the disks that take part, their locks, and the steps that
 * each one's chain needs.  See drop-internal.h.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "backup/chain.h"
#include "backup/lock.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/repository/drop-check.h"
#include "cmd/repository/drop-internal.h"

static bool
concerns (const struct backup_entry *e, const char *id)
{
  const struct manifest_disk *d = manifest_find_disk (&e->manifest, id);

  return e->fault == NULL && d != NULL && d->file != NULL;
}

void
drop_free_lines (struct dropping *x)
{
  for (size_t i = 0; i < x->nr_lines; i++) {
    struct line *l = &x->lines[i];
    fd_close (&l->prune_lock);
    fd_close (&l->lock);
    text_free (l->id);
    free (l->entry);
    free (l->disk);
    free (l->links);
    free (l->steps);
  }
  free (x->lines);
  x->lines = NULL;
  x->nr_lines = 0;
}

/* A line for the disk ID, with its lock.  The entries are looked up later: they may change until
 * all locks are held. */
int
drop_add_line (struct dropping *x, const char *id)
{
  char *error = NULL;

  for (size_t i = 0; i < x->nr_lines; i++)
    if (strcmp (x->lines[i].id, id) == 0)
      return EXIT_DONE;
  struct line *more = realloc (x->lines, (x->nr_lines + 1) * sizeof *more);
  if (more == NULL)
    return drop_fail (text_copy ("out of memory"));
  x->lines = more;
  struct line *l = &x->lines[x->nr_lines++];
  *l = (struct line){ .id = text_copy (id), .lock = -1, .prune_lock = -1 };
  if (repository_lock (&x->o->store.repo, id, &l->lock, &error) == 0
      && repository_lock_prune (&x->o->store.repo, id, &l->prune_lock, &error) == 0)
    return EXIT_DONE;
  return drop_fail (error);
}

/* Manifests of the disks that we have may be rewritten, so nobody else may rewrite them for another
 * disk that they hold: lock these as well. */
int
drop_add_neighbours (struct dropping *x)
{
  const struct backup_list *list = &x->o->list;
  size_t before;

  do {
    before = x->nr_lines;
    for (unsigned i = 0; i < list->nr; i++) {
      const struct manifest *m = &list->list[i].manifest;
      bool ours = false;
      for (size_t l = 0; l < x->nr_lines; l++)
        ours |= manifest_find_disk (m, x->lines[l].id) != NULL;
      for (unsigned d = 0; ours && d < m->nr_disks; d++) {
        int status = drop_add_line (x, m->disks[d].id);
        if (status != EXIT_DONE)
          return status;
      }
    }
  } while (x->nr_lines > before);
  return EXIT_DONE;
}

/* The backups of L's disk, and the steps that they need. */
int
drop_fill_line (struct dropping *x, struct line *l)
{
  struct backup_list *list = &x->o->list;

  l->entry = calloc (list->nr + 1, sizeof *l->entry);
  l->disk = calloc (list->nr + 1, sizeof *l->disk);
  l->links = calloc (list->nr + 1, sizeof *l->links);
  l->steps = calloc (list->nr + 1, sizeof *l->steps);
  if (l->entry == NULL || l->disk == NULL || l->links == NULL || l->steps == NULL)
    return drop_fail (text_copy ("out of memory"));
  for (unsigned i = 0; i < list->nr; i++) {
    struct backup_entry *e = &list->list[i];
    if (!concerns (e, l->id))
      continue;
    struct manifest_disk *d = manifest_find_disk (&e->manifest, l->id);
    l->entry[l->nr] = e;
    l->disk[l->nr] = d;
    l->links[l->nr++] = (struct drop_link){ .full = d->full, .kept = !e->manifest.is_dropped };
  }
  int status = drop_check_order (l->id, l->entry, l->disk, l->links, l->nr);
  if (status != EXIT_DONE)
    return status;
  l->nr_steps = drop_plan (l->links, l->nr, l->steps);
  for (size_t i = 0; i < l->nr_steps; i++) {
    const struct backup_entry *top = l->entry[l->steps[i].top];
    CLEANUP_TEXT char *fault = chain_fault_once (&x->o->store.repo, list, top->name, l->id);
    if (fault == NULL)
      continue;
    cmd_say ("nothing was pruned: backup %s of '%s' has to be kept and is broken: %s", top->name,
             l->id, fault);
    return EXIT_DIFFERENT;
  }
  return EXIT_DONE;
}
