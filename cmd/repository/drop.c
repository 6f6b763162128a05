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
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup/begun.h"
#include "backup/chain.h"
#include "backup/digests.h"
#include "backup/drop-plan.h"
#include "backup/lock.h"
#include "backup/names.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/repository/drop-check.h"
#include "cmd/repository/drop-digests.h"
#include "cmd/repository/drop-unused.h"
#include "cmd/repository/repository.h"
#include "cmd/repository/rewrite.h"

/* One disk's backups, the oldest first. */
struct line {
  const char *id;
  int lock;
  struct backup_entry **entry;
  struct manifest_disk **disk;
  struct drop_link *links;
  struct drop_step *steps;
  size_t nr, nr_steps;
};

struct dropping {
  struct opened *o;
  _Atomic int *signal;
  struct line *lines;
  size_t nr_lines;
};

static int
fail (char *error)
{
  cmd_say ("%s", error);
  text_free (error);
  return EXIT_ERROR;
}

/* Replace the manifest of E.  The disks' locks keep all others from changing it, but for
 * backup-protect, which may have done so since it was read. */
static int
write_entry (struct dropping *x, struct backup_entry *e)
{
  CLEANUP_FD int lock = -1;
  struct backup_list now = { .nr = 0 };
  char *error = NULL;
  int result = -1;

  if (repository_lock (&x->o->store.repo, NULL, &lock, &error) == 0
      && repository_list (&x->o->store.repo, &now, &error) == 0) {
    const struct backup_entry *same = repository_find (&now, e->name);
    if (same != NULL && same->fault == NULL)
      e->manifest.is_protected = same->manifest.is_protected;
    if (e->manifest.is_protected && e->manifest.is_dropped)
      text_error (&error, "nothing more was pruned: backup %s was protected meanwhile", e->name);
    else
      result = repository_write (&x->o->store.repo, &e->manifest, &error);
  }
  repository_list_free (&now);
  return result == 0 ? EXIT_DONE : fail (error);
}

static void
set_text (char **where, const char *text)
{
  char *old = *where;

  *where = text != NULL ? text_copy (text) : NULL;
  text_free (old);
}

/* ---- 1: the disks ---- */

static bool
concerns (const struct backup_entry *e, const char *id)
{
  const struct manifest_disk *d = manifest_find_disk (&e->manifest, id);

  return e->fault == NULL && d != NULL && d->file != NULL;
}

static void
lines_free (struct dropping *x)
{
  for (size_t i = 0; i < x->nr_lines; i++) {
    struct line *l = &x->lines[i];
    fd_close (&l->lock);
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
static int
add_line (struct dropping *x, const char *id)
{
  char *error = NULL;

  for (size_t i = 0; i < x->nr_lines; i++)
    if (strcmp (x->lines[i].id, id) == 0)
      return EXIT_DONE;
  struct line *more = realloc (x->lines, (x->nr_lines + 1) * sizeof *more);
  if (more == NULL)
    return fail (text_copy ("out of memory"));
  x->lines = more;
  x->lines[x->nr_lines++] = (struct line){ .id = id, .lock = -1 };
  if (repository_lock (&x->o->store.repo, id, &x->lines[x->nr_lines - 1].lock, &error) == 0)
    return EXIT_DONE;
  return fail (error);
}

/* Manifests of the disks that we have may be rewritten, so nobody else may rewrite them for another
 * disk that they hold: lock these as well. */
static int
add_neighbours (struct dropping *x)
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
        int status = add_line (x, m->disks[d].id);
        if (status != EXIT_DONE)
          return status;
      }
    }
  } while (x->nr_lines > before);
  return EXIT_DONE;
}

/* The backups of L's disk, and the steps that they need. */
static int
fill_line (struct dropping *x, struct line *l)
{
  struct backup_list *list = &x->o->list;

  l->entry = calloc (list->nr + 1, sizeof *l->entry);
  l->disk = calloc (list->nr + 1, sizeof *l->disk);
  l->links = calloc (list->nr + 1, sizeof *l->links);
  l->steps = calloc (list->nr + 1, sizeof *l->steps);
  if (l->entry == NULL || l->disk == NULL || l->links == NULL || l->steps == NULL)
    return fail (text_copy ("out of memory"));
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
    CLEANUP_TEXT char *fault = chain_fault (&x->o->store.repo, list, top->name, l->id);
    if (fault == NULL)
      continue;
    cmd_say ("nothing was pruned: backup %s of '%s' has to be kept and is broken: %s", top->name,
             l->id, fault);
    return EXIT_DIFFERENT;
  }
  return EXIT_DONE;
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
      set_text (&l->disk[step->top]->file_digest, NULL);
      if (step->kind == DROP_COMMIT)
        set_text (&l->disk[step->base]->file_digest, NULL);
    }
  for (unsigned i = 0; i < list->nr && status == EXIT_DONE; i++) {
    struct backup_entry *e = &list->list[i];
    bool changed = drop[i];
    for (unsigned d = 0; d < e->manifest.nr_disks; d++)
      changed |= e->manifest.disks[d].file != NULL && e->manifest.disks[d].file_digest == NULL;
    if (changed)
      status = write_entry (x, e);
  }
  return status;
}

/* ---- 3: the steps ---- */

/* The file of D has changed, or is another one. */
static int
look_at_file (struct dropping *x, struct manifest_disk *d)
{
  CLEANUP_TEXT char *path = repository_path (&x->o->store.repo, d->file);
  char digest[DIGEST_WHOLE_TEXT];
  struct stat st;

  if (stat (path, &st) == -1)
    return fail (text_printf ("%s: %s", path, strerror (errno)));
  int status = digest_of (path, "raw", false, x->signal, digest);
  if (status == EXIT_DONE) {
    d->file_bytes = (uint64_t)st.st_size;
    set_text (&d->file_digest, digest);
  }
  return status;
}

static int
carry_out (struct dropping *x, struct line *l, const struct drop_step *step)
{
  struct manifest_disk *top = l->disk[step->top], *base = l->disk[step->base];
  CLEANUP_TEXT char *top_path = repository_path (&x->o->store.repo, top->file);
  CLEANUP_TEXT char *base_path = repository_path (&x->o->store.repo, base->file);
  CLEANUP_TEXT char *old_list = NULL;
  const char *parent = l->entry[step->base]->name;
  size_t from = step->base + (step->kind == DROP_REBASE); /* whose lists TOP's takes over */
  int status = EXIT_DONE;

  switch (step->kind) {
  case DROP_REBASE:
    status = rewrite_rebase (top_path, base_path);
    break;
  case DROP_COMMIT:
    return rewrite_commit (top_path, base_path);
  case DROP_RELINK:
    status = rewrite_relink (top_path, base_path);
    /* The backup that was committed is the one before it. */
    for (size_t i = step->top; i-- > step->base;)
      if (l->links[i].kept)
        parent = l->entry[i]->name;
    break;
  case DROP_BECOME:
    top->full = true;
    parent = NULL;
    set_text (&top->file, base->file);
    set_text (&top->reason, "the full backup before it was pruned");
    break;
  }
  if (status != EXIT_DONE)
    return status;
  /* An interrupted call may have done all of this. */
  if (step->kind == DROP_BECOME
      || (step->kind == DROP_REBASE && strcmp (top->parent_backup, parent) != 0))
    drop_digests (&x->o->store.repo, l->entry[step->top]->name, l->disk + from,
                  step->top - from + 1, step->kind == DROP_BECOME, &old_list);
  set_text (&top->parent_backup, parent);
  set_text (&top->parent_file, parent != NULL ? base->file : NULL);
  status = look_at_file (x, top);
  if (status != EXIT_DONE)
    return status;
  status = write_entry (x, l->entry[step->top]);
  if (status == EXIT_DONE && step->kind == DROP_BECOME)
    unlink (top_path); /* nothing lies on it any more */
  if (status == EXIT_DONE && old_list != NULL) {
    CLEANUP_TEXT char *path = repository_path (&x->o->store.repo, old_list);
    unlink (path);
  }
  return status;
}

/* Digests that an interrupted call has forgotten and not computed again. */
static int
complete_digests (struct dropping *x, const struct line *l)
{
  for (size_t i = 0; i < l->nr; i++) {
    if (!l->links[i].kept || l->disk[i]->file_digest != NULL)
      continue;
    int status = look_at_file (x, l->disk[i]);
    if (status == EXIT_DONE)
      status = write_entry (x, l->entry[i]);
    if (status != EXIT_DONE)
      return status;
  }
  return EXIT_DONE;
}

static int
carry_out_all (struct dropping *x)
{
  int status = EXIT_DONE;

  for (size_t i = 0; i < x->nr_lines && status == EXIT_DONE; i++) {
    struct line *l = &x->lines[i];
    for (size_t s = 0; s < l->nr_steps && status == EXIT_DONE; s++) {
      if (x->signal != NULL && atomic_load (x->signal) != 0)
        return EXIT_CANCELLED;
      status = carry_out (x, l, &l->steps[s]);
    }
    if (status == EXIT_DONE)
      status = complete_digests (x, l);
  }
  return status;
}

/* ---- 4: what is not needed any more ---- */

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

/* A backup that has become the full one has left the file that it had before. */
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

static int
remove_dropped (struct dropping *x)
{
  struct backup_list *list = &x->o->list;
  CLEANUP_TEXT char *folder = repository_path (&x->o->store.repo, "backups");
  CLEANUP_FD int lock = -1;
  char *error = NULL;

  for (unsigned i = 0; i < list->nr; i++)
    if (!list->list[i].manifest.is_dropped && list->list[i].fault == NULL)
      remove_old_file (x, &list->list[i]);
  for (size_t i = 0; i < x->nr_lines; i++)
    digests_tidy (&x->o->store.repo, list, x->lines[i].id, NULL, true);
  if (repository_lock (&x->o->store.repo, NULL, &lock, &error) == -1)
    return fail (error);
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
      return fail (error);
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
  return repository_sync (folder, &error) == 0 ? EXIT_DONE : fail (error);
}

/* ---------------------------------------------------------------------------------------------- */

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
      status = add_line (x, e->manifest.disks[d].id);
  }
  if (status == EXIT_DONE)
    status = add_neighbours (x);
  if (status != EXIT_DONE)
    return status;
  if (repository_list (&x->o->store.repo, &now, &error) == -1)
    return fail (error);
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
  /* The lines' names are those of the old list. */
  for (size_t l = 0; l < x->nr_lines; l++)
    for (unsigned i = 0; i < now.nr; i++) {
      const struct manifest_disk *d = manifest_find_disk (&now.list[i].manifest, x->lines[l].id);
      if (d != NULL) {
        x->lines[l].id = d->id;
        break;
      }
    }
  repository_list_free (list);
  *list = now;
  for (size_t l = 0; l < x->nr_lines && status == EXIT_DONE; l++)
    status = fill_line (x, &x->lines[l]);
  return *drop != NULL ? status : fail (text_copy ("out of memory"));
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
    status = carry_out_all (&x);
  if (status == EXIT_DONE)
    status = remove_dropped (&x);
  *freed -= taken_up (&x);
  lines_free (&x);
  free (drop);
  return status;
}
