/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Taking backups out of a repository.  The steps that a chain needs are those of
 * backup/drop-plan.h; here they are carried out, in an order in which a kill at any instant leaves
 * all other backups readable and a later call able to go on:
 *
 *   1  lock the disks
 *   2  mark the manifests that go ("dropped"), and forget the digests of files that will change,
 *      and remove the files of chains that go as a whole
 *   3  carry out the steps; after each one write the manifest of the backup that it concerns
 *   4  remove the files that no backup needs any more, then the manifests
 *
 * A manifest stays until its files are removed, so no file is ever without one that names it.  The
 * exception is the file of an incremental backup that has become the full one: it is found by its
 * name.
 */

#include "config.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "backup/lock.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/repository/drop-check.h"
#include "cmd/repository/drop-internal.h"
#include "cmd/repository/drop-unused.h"

int
drop_fail (char *error)
{
  cmd_say ("%s", error);
  text_free (error);
  return EXIT_ERROR;
}

/* Replace the manifest of E.  The disks' locks keep all others from changing it, but for
 * backup-protect, which may have done so since it was read. */
int
drop_write_entry (struct dropping *x, struct backup_entry *e)
{
  CLEANUP_FD int lock = -1;
  struct backup_entry now;
  char *error = NULL;
  int result = -1;

  if (repository_lock (&x->o->store.repo, NULL, &lock, &error) == 0) {
    repository_read (&x->o->store.repo, e->name, &now);
    if (now.fault == NULL)
      e->manifest.is_protected = now.manifest.is_protected;
    repository_entry_clear (&now);
    if (e->manifest.is_protected && e->manifest.is_dropped)
      text_error (&error, "nothing more was pruned: backup %s was protected meanwhile", e->name);
    else
      result = repository_write (&x->o->store.repo, &e->manifest, &error);
  }
  return result == 0 ? EXIT_DONE : drop_fail (error);
}

void
drop_set_text (char **where, const char *text)
{
  char *old = *where;

  *where = text != NULL ? text_copy (text) : NULL;
  text_free (old);
}

/* ---- 2: what will be changed ---- */

static int
mark_all (struct dropping *x, const bool *drop)
{
  struct backup_list *list = &x->o->list;
  int status = EXIT_DONE;

  for (size_t i = 0; i < x->nr_lines; i++)
    for (size_t s = 0; s < x->lines[i].nr_steps; s++) {
      struct line *l = &x->lines[i];
      const struct drop_step *step = &l->steps[s];
      drop_set_text (&l->disk[step->top]->file_digest, NULL);
      if (step->kind == DROP_COMMIT)
        drop_set_text (&l->disk[step->base]->file_digest, NULL);
    }
  for (unsigned i = 0; i < list->nr && status == EXIT_DONE; i++) {
    struct backup_entry *e = &list->list[i];
    bool changed = drop[i];
    for (unsigned d = 0; d < e->manifest.nr_disks; d++)
      changed |= e->manifest.disks[d].file != NULL && e->manifest.disks[d].file_digest == NULL;
    if (changed)
      status = drop_write_entry (x, e);
  }
  return status;
}

/* ---- what is freed ---- */

/* What the files in the folders of our disks take up. */
static int64_t
taken_up (const struct dropping *x)
{
  int64_t sum = 0;

  for (size_t i = 0; i < x->nr_lines; i++) {
    CLEANUP_TEXT char *path = repository_path (&x->o->store.repo, x->lines[i].id);
    DIR *d = opendir (path);
    const struct dirent *e;
    struct stat st;
    while (d != NULL && (e = readdir (d)) != NULL)
      if (fstatat (dirfd (d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG (st.st_mode))
        sum += (int64_t)st.st_blocks * 512;
    if (d != NULL)
      closedir (d);
  }
  return sum;
}

/* Lock the disks of all that goes, and read the manifests again, as nobody can change them now.
 * DROP is for the new list. */
static int
begin (struct dropping *x, char *const *names, size_t nr_names, bool **drop)
{
  struct backup_list *list = &x->o->list, now;
  char *error = NULL;
  int status = EXIT_DONE;

  for (unsigned i = 0; i < list->nr && status == EXIT_DONE; i++) {
    const struct backup_entry *e = &list->list[i];
    bool goes = e->manifest.is_dropped;
    for (size_t n = 0; n < nr_names; n++)
      goes |= strcmp (names[n], e->name) == 0;
    for (unsigned d = 0; goes && d < e->manifest.nr_disks && status == EXIT_DONE; d++)
      status = drop_add_line (x, e->manifest.disks[d].id);
  }
  if (status == EXIT_DONE)
    status = drop_add_neighbours (x);
  if (status != EXIT_DONE)
    return status;
  if (repository_list (&x->o->store.repo, &now, &error) == -1)
    return drop_fail (error);
  status = drop_check_list (list, &now);
  if (status != EXIT_DONE) {
    repository_list_free (&now);
    return status;
  }
  *drop = calloc (now.nr + 1, sizeof **drop);
  for (unsigned i = 0; *drop != NULL && i < now.nr; i++) {
    for (size_t n = 0; n < nr_names; n++)
      now.list[i].manifest.is_dropped |= strcmp (names[n], now.list[i].name) == 0;
    (*drop)[i] = now.list[i].manifest.is_dropped;
  }
  repository_list_free (list);
  *list = now;
  for (size_t l = 0; l < x->nr_lines && status == EXIT_DONE; l++)
    status = drop_fill_line (x, &x->lines[l]);
  return *drop != NULL ? status : drop_fail (text_copy ("out of memory"));
}

int
drop_backups (struct opened *o, char *const *names, size_t nr_names, _Atomic int *signal,
              int64_t *freed)
{
  struct dropping x = { .o = o, .signal = signal };
  bool *drop = NULL;

  int status = begin (&x, names, nr_names, &drop);
  *freed = taken_up (&x);
  if (status == EXIT_DONE)
    status = mark_all (&x, drop);
  if (status == EXIT_DONE)
    drop_unused (&o->store.repo, &o->list);
  if (status == EXIT_DONE)
    status = drop_carry_out (&x);
  if (status == EXIT_DONE)
    status = drop_remove (&x);
  *freed -= taken_up (&x);
  drop_free_lines (&x);
  free (drop);
  return status;
}
