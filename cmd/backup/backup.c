/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror backup: the order of the steps.  See backup.h.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/text.h"
#include "cmd/backup/backup.h"
#include "cmd/far/far.h"

static void
lock_disks (struct backup_run *run)
{
  for (unsigned i = 0; i < run->nr_disks; i++) {
    struct backup_disk *d = &run->disks[i];
    CLEANUP_TEXT char *error = NULL;
    int status;
    d->locked = store_lock (&run->store, d->id, &status, &error) == 0;
    if (!d->locked)
      backup_fail (d, status, "%s", error);
  }
}

static bool
any_left (const struct backup_run *run)
{
  for (unsigned i = 0; i < run->nr_disks; i++)
    if (run->disks[i].error == NULL)
      return true;
  return false;
}

/* The names of the disks whose locks we hold. */
static char **
locked_ids (const struct backup_run *run, unsigned *nr)
{
  char **ids = calloc (run->nr_disks + 1, sizeof *ids);

  *nr = 0;
  for (unsigned i = 0; ids != NULL && i < run->nr_disks; i++)
    if (run->disks[i].locked)
      ids[(*nr)++] = run->disks[i].id;
  return ids;
}

static void
on_tidied (void *opaque, const char *name)
{
  (void)opaque;
  cmd_say ("backup %s was interrupted: what it has left was removed", name);
}

/* Can the disks be backed up at all?  It may be asked again. */
static void
ask (struct backup_run *run)
{
  backup_watch (false, false);
  for (unsigned i = 0; i < run->nr_disks; i++) {
    struct backup_disk *d = &run->disks[i];
    if (d->error == NULL && d->server == 0 && strcmp (d->place, d->control) != 0)
      backup_serve (run, d, i);
    if (d->error == NULL)
      backup_ask (run, d);
  }
  backup_watch (true, true);
}

/* Learn what each disk is to be.  0, or an exit status after a message. */
static int
plan (struct backup_run *run)
{
  CLEANUP_TEXT char *error = NULL;
  struct backup_list list;

  ask (run);
  if (store_list (&run->store, &list, &error) == -1) {
    cmd_say ("%s", error);
    return EXIT_ERROR;
  }
  for (unsigned i = 0; i < list.nr; i++)
    if (list.list[i].fault != NULL)
      cmd_warning ("backup %s: %s", list.list[i].name, list.list[i].fault);
  for (unsigned i = 0; i < run->nr_disks; i++)
    if (run->disks[i].error == NULL)
      backup_decide (run, &run->disks[i], &list);
  if (run->dry_run) {
    backup_watch (false, false);
    backup_forecast (run, &list);
    backup_watch (true, true);
  }
  repository_list_free (&list);
  return 0;
}

static void
tell_reasons (const struct backup_run *run)
{
  for (unsigned i = 0; i < run->nr_disks; i++)
    if (run->disks[i].error == NULL && !run->no_progress)
      cmd_say ("%s: %s: %s", run->disks[i].id, run->disks[i].full ? "full" : "incremental",
               run->disks[i].reason);
}

/* Copy all disks, and make their copies stand at one instant. */
static int
copy (struct backup_run *run)
{
  for (unsigned i = 0; i < run->nr_disks; i++)
    if (run->disks[i].error == NULL)
      backup_start_worker (run, &run->disks[i], i);
  backup_watch (false, false);
  int status = backup_wait_ready (run);
  if (status == 0)
    status = backup_instant (run);
  for (unsigned i = 0; i < run->nr_disks; i++) {
    struct backup_disk *d = &run->disks[i];
    bool well = d->error == NULL;
    backup_end_worker (run, d, i, status == 0 && well ? 0 : SIGINT);
    /* It was told why; its worker's "the destination is incomplete" is about a file that goes. */
    d->told = d->told || (status != 0 && well && d->status == EXIT_CANCELLED);
  }
  backup_watch (true, status != 0);
  return status;
}

/* With the locks.  An exit status. */
static int
run_locked (struct backup_run *run)
{
  CLEANUP_TEXT char *error = NULL;
  unsigned nr;
  char **ids = locked_ids (run, &nr);
  int status = EXIT_ERROR;

  if (ids == NULL)
    cmd_say ("out of memory");
  else if ((status = plan (run)) == 0) {
    tell_reasons (run);
    if (any_left (run)
        && store_begin (&run->store, run->begun_us, ids, nr, run->name, &error) == -1) {
      cmd_say ("%s", error);
      status = EXIT_DEST_FAILED;
    } else if (any_left (run)) {
      run->begun = true;
      /* Only now: as long as a mark is there, the job that is left over is known as a backup's. */
      store_tidy (&run->store, run->name, ids, nr, on_tidied, NULL);
      run->checkpoint = backup_checkpoint_name (run->store.repo.uuid, run->name);
      status = copy (run);
      backup_tell_errors (run);
      if (status == 0)
        status = backup_seal (run);
      if (run->begun)
        backup_drop_checkpoints (run);
      if (run->begun)
        store_give_up (&run->store, run->name, ids, nr, backup_job_is_left (run));
    }
  }
  free (ids);
  return status;
}

void
backup_free_run (struct backup_run *run)
{
  for (unsigned i = 0; i < run->nr_disks; i++) {
    struct backup_disk *d = &run->disks[i];
    control_client_free (d->client);
    backup_stop_server (d);
    text_free (d->id);
    text_free (d->control);
    text_free (d->place);
    text_free (d->reason);
    text_free (d->parent_backup);
    text_free (d->parent_file);
    text_free (d->since);
    text_free (d->file);
    text_free (d->error);
  }
  backup_remove_folder (run);
  manifest_clear (&run->manifest);
  text_free (run->checkpoint);
  text_free (run->place);
  store_close (&run->store);
}

static bool
go_on (void *opaque)
{
  (void)opaque;
  if (backup_signal != 0)
    return false;
  backup_watch_alive ();
  return true;
}

/* Open the repository, and make one that is missing once it is known that a disk will be backed up:
 * a run that is refused leaves none.  0, or an exit status after a message. */
static int
open_store (struct backup_run *run, const char *path)
{
  CLEANUP_TEXT char *error = NULL;
  int status = EXIT_DONE;

  bool good = store_look (&run->store, path, &error) == 0;
  if (good && run->store.missing && !run->dry_run) {
    if (run->mode == BACKUP_INCREMENTAL)
      status = plan (run); /* which refuses all of them, with the reason */
    else
      ask (run);
    if (status == EXIT_DONE && any_left (run))
      good = store_make (&run->store, &error) == 0;
  }
  if (good)
    return status;
  cmd_say ("%s", error);
  return backup_signal != 0 ? EXIT_CANCELLED : EXIT_DEST_FAILED;
}

int
backup_run_steps (struct backup_run *run, const char *path)
{
  backup_catch_signals ();
  backup_watch_start (run);
  backup_watch (true, true);
  run->store.go_on = go_on;
  run->place = far_is_meant (path) ? text_copy (path) : backup_absolute (path);
  int status = open_store (run, path);
  if (status == EXIT_DONE && run->dry_run) {
    status = plan (run);
    if (status == EXIT_DONE)
      backup_tell_plan (run);
  } else if (status == EXIT_DONE && !run->store.missing) {
    lock_disks (run);
    status = any_left (run) ? run_locked (run) : EXIT_DONE;
  }
  backup_watch (false, false);
  status = backup_tell_end (run, status);
  backup_watch_end ();
  return status;
}
