/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup: the files are complete.  They are made durable and read once for their digests, the
 * manifest is written, and then the checkpoints that it makes superfluous are removed.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backup/begun.h"
#include "backup/lock.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/backup/backup.h"
#include "cmd/control-query.h"
#include "mirror/endpoint/endpoint.h"
#include "mirror/verify/image-digest.h"

/* ---- digests ---- */

static bool
go_on (void *opaque, uint64_t done, uint64_t size)
{
  (void)opaque, (void)done, (void)size;
  return backup_signal == 0;
}

/* The digest of the endpoint WORDS.  NULL with *ERROR. */
static char *
digest_of (char *const *words, unsigned nr, char **error)
{
  const struct endpoint_options opts = { .writable = false };
  const struct image_digest_options o
      = { .path = "", .format = "raw", .progress = go_on }; /* nothing is kept beside the image */
  struct endpoint *ep = endpoint_open (words, nr, &opts, NULL, error);
  char text[DIGEST_WHOLE_TEXT];
  bool kept;

  if (ep == NULL)
    return NULL;
  int r = image_digest (ep, &o, text, &kept, error);
  endpoint_close (ep);
  return r == 0 ? text_copy (text) : NULL;
}

/* Make the file of D durable, and read it. */
static void
seal_disk (struct backup_run *run, struct backup_disk *d, struct manifest_disk *m)
{
  CLEANUP_TEXT char *path = repository_path (&run->repository, d->file);
  CLEANUP_TEXT char *folder = repository_path (&run->repository, d->id);
  char *const words[] = { (char *)"[",
                          (char *)"qemu-nbd",
                          (char *)"--format=qcow2",
                          (char *)"--persistent",
                          (char *)"--shared=0",
                          (char *)"--read-only",
                          path,
                          (char *)"]" };
  CLEANUP_TEXT char *error = NULL;
  struct stat st;

  if (repository_sync (path, &error) == -1 || repository_sync (folder, &error) == -1) {
    backup_fail (d, EXIT_DEST_FAILED, "%s", error);
    return;
  }
  m->digest = digest_of (words, sizeof words / sizeof words[0], &error);
  if (m->digest != NULL)
    m->file_digest = digest_of (&(char *){ path }, 1, &error);
  if (m->digest == NULL || m->file_digest == NULL) {
    backup_fail (d, EXIT_DEST_FAILED, "the file cannot be read back: %s", error);
    return;
  }
  if (stat (path, &st) == -1)
    backup_fail (d, EXIT_DEST_FAILED, "%s: %s", path, strerror (errno));
  else
    m->file_bytes = (uint64_t)st.st_size;
}

/* ---- included files ---- */

static int
copy_file (const char *from, const char *to, uint64_t *bytes, char **error)
{
  CLEANUP_FD int in = open (from, O_RDONLY | O_CLOEXEC);
  CLEANUP_FD int out = open (to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  char buffer[65536];
  ssize_t n = 0;

  if (in == -1)
    return text_error (error, "--include %s: %s", from, strerror (errno));
  if (out == -1)
    return text_error (error, "%s: %s", to, strerror (errno));
  *bytes = 0;
  while ((n = read (in, buffer, sizeof buffer)) > 0) {
    if (fd_write_all (out, buffer, (size_t)n) == -1)
      return text_error (error, "%s: %s", to, strerror (errno));
    *bytes += (uint64_t)n;
  }
  if (n == -1)
    return text_error (error, "--include %s: %s", from, strerror (errno));
  return fsync (out) == 0 ? 0 : text_error (error, "%s: %s", to, strerror (errno));
}

static int
include (struct backup_run *run, unsigned nr, char **error)
{
  const char *from = run->includes[nr], *slash = strrchr (from, '/');
  struct manifest_include *m = manifest_add_include (&run->manifest);

  if (m == NULL)
    return text_error (error, "out of memory");
  m->source = text_copy (from);
  m->file
      = text_printf ("backups/%s.files/%u-%s", run->name, nr + 1, slash != NULL ? slash + 1 : from);
  CLEANUP_TEXT char *to = repository_path (&run->repository, m->file);
  if (copy_file (from, to, &m->bytes, error) == -1)
    return -1;
  m->digest = digest_of (&(char *){ to }, 1, error);
  return m->digest != NULL ? 0 : -1;
}

static int
include_all (struct backup_run *run, char **error)
{
  if (run->nr_includes == 0)
    return 0;
  CLEANUP_TEXT char *folder = text_printf ("%s/backups/%s.files", run->repository.path, run->name);
  if (mkdir (folder, 0777) == -1)
    return text_error (error, "%s: %s", folder, strerror (errno));
  for (unsigned i = 0; i < run->nr_includes; i++)
    if (include (run, i, error) == -1)
      return -1;
  return repository_sync (folder, error);
}

/* ---- the manifest ---- */

static void
describe_disk (struct backup_run *run, struct backup_disk *d)
{
  struct manifest_disk *m = manifest_add_disk (&run->manifest);

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
  if (d->error == NULL)
    seal_disk (run, d, m);
  if (d->error != NULL) {
    m->error = text_copy (d->error);
    return;
  }
  m->file = text_copy (d->file);
  m->parent_backup = d->parent_backup != NULL ? text_copy (d->parent_backup) : NULL;
  m->parent_file = d->parent_file != NULL ? text_copy (d->parent_file) : NULL;
  if (d->checkpoint_uuid[0] != '\0') {
    m->checkpoint = text_copy (run->checkpoint);
    m->checkpoint_uuid = text_copy (d->checkpoint_uuid);
  }
}

static int
write_manifest (struct backup_run *run, char **error)
{
  struct manifest *m = &run->manifest;
  CLEANUP_FD int lock = -1;

  m->name = text_copy (run->name);
  m->repository = text_copy (run->repository.uuid);
  m->program = text_copy (PACKAGE_NAME " " PACKAGE_VERSION);
  m->host = repository_host ();
  m->host_id = repository_host_id ();
  m->begun_us = run->begun_us;
  m->ended_us = clock_date_us ();
  m->guest_frozen = run->frozen;
  if (repository_lock (&run->repository, NULL, &lock, error) == -1
      || repository_write (&run->repository, m, error) == -1)
    return -1;
  backup_begun_end (&run->repository, run->name);
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
        || !backup_checkpoint_is_ours (name, run->repository.uuid))
      continue;
    const struct control_call call = { .command = "mirror-checkpoint-remove",
                                       .args = json_pack ("{s:s}", "name", name),
                                       .timeout_ms = QUERY_MS };
    if (control_client_call (d->client, &call, &error) == -1)
      cmd_warning ("checkpoint '%s' was not removed; the next backup tries again: %s", name, error);
  }
  json_decref (all);
}

/* What a disk that has failed has left. */
static void
remove_file (const struct backup_run *run, const struct backup_disk *d)
{
  if (d->file == NULL)
    return;
  CLEANUP_TEXT char *path = repository_path (&run->repository, d->file);
  unlink (path);
}

int
backup_seal (struct backup_run *run)
{
  CLEANUP_TEXT char *error = NULL;
  unsigned good = 0;

  for (unsigned i = 0; i < run->nr_disks; i++) {
    describe_disk (run, &run->disks[i]);
    good += run->disks[i].error == NULL;
    if (run->disks[i].error != NULL)
      remove_file (run, &run->disks[i]);
  }
  if (backup_signal != 0)
    return EXIT_CANCELLED;
  if (good == 0)
    return EXIT_DONE; /* each disk has its own reason, and its exit status */
  if (include_all (run, &error) == -1 || write_manifest (run, &error) == -1) {
    cmd_say ("%s", error);
    return EXIT_DEST_FAILED;
  }
  for (unsigned i = 0; i < run->nr_disks; i++)
    if (run->disks[i].error == NULL)
      remove_checkpoints (run, &run->disks[i]);
  return EXIT_DONE;
}
