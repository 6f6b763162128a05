/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Taking backups out of a repository: the steps by which a chain does without them.  After each
 * one the manifest of the backup that it concerns is written.  See drop-internal.h.
 */

#include "config.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/text.h"
#include "cmd/repository/drop-digests.h"
#include "cmd/repository/drop-internal.h"
#include "cmd/repository/rewrite.h"

/* The file of D has changed, or is another one. */
static int
look_at_file (struct dropping *x, struct manifest_disk *d)
{
  CLEANUP_TEXT char *path = repository_path (&x->o->store.repo, d->file);
  char digest[DIGEST_WHOLE_TEXT];
  struct stat st;

  if (stat (path, &st) == -1)
    return drop_fail (text_printf ("%s: %s", path, strerror (errno)));
  int status = digest_of (path, "raw", false, x->signal, digest);
  if (status == EXIT_DONE) {
    d->file_bytes = (uint64_t)st.st_size;
    drop_set_text (&d->file_digest, digest);
  }
  return status;
}

/* An earlier version may have been killed when a file named its new parent and lacked what it was
 * to get.  With the file that its manifest names, which is still there, it lacks nothing, however
 * far that was.  A later call may drop that file's backup as well, so this is done for all files
 * through which TOP lies upon BASE.  One whose digest is known was not written to. */
static int
heal (struct dropping *x, const struct line *l, const struct drop_step *step)
{
  const char *name = l->entry[step->top]->name;
  int status = EXIT_DONE;

  for (size_t i = step->top; i > step->base && name != NULL && status == EXIT_DONE; i--) {
    const struct manifest_disk *d = l->disk[i];
    if (strcmp (l->entry[i]->name, name) != 0)
      continue; /* an interrupted call has taken it out, and its parent may be gone */
    if (d->file_digest == NULL && d->parent_file != NULL) {
      CLEANUP_TEXT char *path = repository_path (&x->o->store.repo, d->file);
      CLEANUP_TEXT char *parent = repository_path (&x->o->store.repo, d->parent_file);
      status = rewrite_relink (path, parent);
    }
    name = d->parent_backup;
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
    status = heal (x, l, step);
    if (status == EXIT_DONE)
      status = rewrite_rebase (top_path, base_path);
    break;
  case DROP_COMMIT:
    status = heal (x, l, step);
    return status == EXIT_DONE ? rewrite_commit (top_path, base_path) : status;
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
    drop_set_text (&top->file, base->file);
    drop_set_text (&top->reason, "the full backup before it was pruned");
    break;
  }
  if (status != EXIT_DONE)
    return status;
  /* An interrupted call may have done all of this. */
  if (step->kind == DROP_BECOME
      || (step->kind == DROP_REBASE && strcmp (top->parent_backup, parent) != 0))
    drop_digests (&x->o->store.repo, l->entry[step->top]->name, l->disk + from,
                  step->top - from + 1, step->kind == DROP_BECOME, &old_list);
  drop_set_text (&top->parent_backup, parent);
  drop_set_text (&top->parent_file, parent != NULL ? base->file : NULL);
  status = look_at_file (x, top);
  if (status != EXIT_DONE)
    return status;
  status = drop_write_entry (x, l->entry[step->top]);
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
      status = drop_write_entry (x, l->entry[i]);
    if (status != EXIT_DONE)
      return status;
  }
  return EXIT_DONE;
}

int
drop_carry_out (struct dropping *x)
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
