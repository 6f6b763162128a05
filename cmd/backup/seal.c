/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup: the files are complete.  They are made durable and read once for their digests, the
 * manifest is written, and then the checkpoints that it makes superfluous are removed.
 */

#include "config.h"

#include <string.h>

#include "backup/lock.h"
#include "base/clock.h"
#include "base/text.h"
#include "cmd/backup/backup.h"
#include "cmd/control-query.h"

char *
backup_include_name (unsigned nr, const char *from)
{
  const char *slash = strrchr (from, '/');

  return text_printf ("%u-%s", nr + 1, slash != NULL ? slash + 1 : from);
}

static int
include (struct backup_run *run, unsigned nr, char **error)
{
  const char *from = run->includes[nr];
  CLEANUP_TEXT char *name = backup_include_name (nr, from);
  struct manifest_include *m = manifest_add_include (&run->manifest);

  if (m == NULL)
    return text_error (error, "out of memory");
  m->source = text_copy (from);
  m->file = text_printf ("backups/%s.files/%s", run->name, name);
  return store_include (&run->store, from, m, error);
}

/* ---- the manifest ---- */

static void
forget (char **text)
{
  text_free (*text);
  *text = NULL;
}

static void
describe_disk (struct backup_run *run, struct backup_disk *d)
{
  struct manifest_disk *m = manifest_add_disk (&run->manifest);
  CLEANUP_TEXT char *error = NULL;

  if (m == NULL) {
    backup_fail (d, EXIT_ERROR, "out of memory");
    return;
  }
  m->id = text_copy (d->id);
  m->full = d->full;
  m->reason = d->reason != NULL ? text_copy (d->reason) : NULL;
  m->control = text_copy (d->place);
  m->size = d->size;
  m->copied_bytes = d->copied;
  m->pause_ms = d->pause_ms;
  if (d->error == NULL) {
    m->file = text_copy (d->file);
    m->parent_backup = d->parent_backup != NULL ? text_copy (d->parent_backup) : NULL;
    m->parent_file = d->parent_file != NULL ? text_copy (d->parent_file) : NULL;
    if (store_seal (&run->store, m, &error) == -1)
      backup_fail (d, EXIT_DEST_FAILED, "%s", error);
  }
  if (d->error != NULL) {
    m->error = text_copy (d->error);
    forget (&m->file);
    forget (&m->parent_backup);
    forget (&m->parent_file);
    return;
  }
  if (d->checkpoint_uuid[0] != '\0') {
    m->checkpoint = text_copy (run->checkpoint);
    m->checkpoint_uuid = text_copy (d->checkpoint_uuid);
  }
}

static int
write_manifest (struct backup_run *run, char **error)
{
  struct manifest *m = &run->manifest;

  m->name = text_copy (run->name);
  m->repository = text_copy (run->store.repo.uuid);
  m->program = text_copy (PACKAGE_NAME " " PACKAGE_VERSION);
  m->host = repository_host ();
  m->host_id = repository_host_id ();
  m->begun_us = run->begun_us;
  m->ended_us = clock_date_us ();
  m->guest_frozen = run->frozen;
  /* With the mark, the next backup knows a job that is left over for a backup's. */
  if (store_write (&run->store, m, backup_job_is_left (run), error) == -1)
    return -1;
  run->begun = false;
  return 0;
}

/* The manifest names the new checkpoint: those of earlier backups, and of interrupted ones, are not
 * needed any more. */
static void
remove_checkpoints (const struct backup_run *run, struct backup_disk *d)
{
  json_t *all = d->checkpoint_uuid[0] != '\0' ? backup_checkpoints (d) : NULL, *c;
  size_t i;

  json_array_foreach (all, i, c)
  {
    const char *name = status_text (c, "name");
    CLEANUP_TEXT char *error = NULL;
    if (name == NULL || strcmp (name, run->checkpoint) == 0
        || !backup_checkpoint_is_ours (name, run->store.repo.uuid))
      continue;
    const struct control_call call = { .command = "mirror-checkpoint-remove",
                                       .args = json_pack ("{s:s}", "name", name),
                                       .timeout_ms = QUERY_MS };
    if (control_client_call (d->client, &call, &error) == -1)
      cmd_warning ("checkpoint '%s' was not removed; the next backup tries again: %s", name, error);
  }
  json_decref (all);
}

void
backup_drop_checkpoints (const struct backup_run *run)
{
  for (unsigned i = 0; i < run->nr_disks; i++) {
    const struct backup_disk *d = &run->disks[i];
    CLEANUP_TEXT char *error = NULL;
    if (d->checkpoint_uuid[0] == '\0')
      continue;
    const struct control_call call = { .command = "mirror-checkpoint-remove",
                                       .args = json_pack ("{s:s}", "name", run->checkpoint),
                                       .timeout_ms = QUERY_MS };
    if (control_client_call (d->client, &call, &error) == -1)
      cmd_warning ("checkpoint '%s' was not removed; the next backup tries again: %s",
                   run->checkpoint, error);
  }
}

int
backup_seal (struct backup_run *run)
{
  CLEANUP_TEXT char *error = NULL;
  unsigned good = 0;

  for (unsigned i = 0; i < run->nr_disks; i++) {
    describe_disk (run, &run->disks[i]);
    good += run->disks[i].error == NULL;
    if (run->disks[i].error != NULL && run->disks[i].file != NULL)
      store_remove_file (&run->store, run->disks[i].file);
  }
  if (backup_signal != 0)
    return EXIT_CANCELLED;
  if (good == 0)
    return EXIT_DONE; /* each disk has its own reason, and its exit status */
  int r = 0;
  for (unsigned i = 0; r == 0 && i < run->nr_includes; i++)
    r = include (run, i, &error);
  if (r == -1 || write_manifest (run, &error) == -1) {
    cmd_say ("%s", error);
    return EXIT_DEST_FAILED;
  }
  for (unsigned i = 0; i < run->nr_disks; i++)
    if (run->disks[i].error == NULL)
      remove_checkpoints (run, &run->disks[i]);
  return EXIT_DONE;
}
