/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror restore: copy a disk out of a backup, and prove that it is what was backed up.
 */

#include "config.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <jansson.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/text.h"
#include "budget/budget.h"
#include "cmd/control-query.h"
#include "cmd/image.h"
#include "cmd/repository/repository.h"
#include "cmd/show-progress.h"
#include "cmd/units.h"
#include "cmd/verify-meter.h"
#include "cmd/worker.h"
#include "mirror/endpoint/uri.h"
#include "mirror/job/copy.h"
#include "mirror/verify/image-digest.h"

enum { OPT_AT = 0x200, OPT_DISK, OPT_NO_VERIFY, OPT_INCLUDED };

static const struct cmd_option options[] = {
  { "at", OPT_AT, "NAME|TIME",
    "which backup: its name, or the last one that had ended by TIME (default the last one)" },
  { "disk", OPT_DISK, "DISK", "which disk; not needed if the backup holds only one" },
  { "no-verify", OPT_NO_VERIFY, NULL, "do not read DEST afterwards to compare it" },
  { "included", OPT_INCLUDED, "DIR",
    "put the files that were backed up beside the disks into DIR" },
  { "sync", WORKER_OPT_SYNC, "full|compare",
    "write everything (default), or only what differs from what DEST holds" },
  WORKER_DEST_FORMAT_OPTION,
  WORKER_SPARSE_OPTION,
  { "bandwidth", WORKER_OPT_BANDWIDTH, "RATE",
    "send at most RATE bytes a second (k, M, G; 0 or none: no limit, the default)" },
  { "connections", WORKER_OPT_CONNECTIONS, "N",
    "open at most N connections to the destination, 1 to 4 (default 4)" },
  { "budget", WORKER_OPT_BUDGET, "NAME[:WEIGHT]",
    "share the budget NAME with other jobs of this host (see 'nbdmirror budget')" },
  { "compress", WORKER_OPT_COMPRESS, "[LEVEL]",
    "compress what is sent to a server of nbdmirror receive, where that is faster" },
  WORKER_TIMEOUT_OPTIONS,
  { "allow-unsafe-destination", WORKER_OPT_ALLOW_UNSAFE, NULL,
    "accept a destination that cannot flush: nothing that is written there is known to be safe" },
  { "report", WORKER_OPT_REPORT, "FILE",
    "write a JSON object about the copy into FILE at the end" },
  { "json", 'j', NULL, "print that object on standard output, and no progress" },
  CMD_OPTIONS_END,
};

struct restoring {
  struct worker worker;
  struct worker_settings settings;
  struct opened o;
  struct selected which;
  const char *dest;     /* as the user has named it */
  const char *included; /* NULL: not asked for */
  bool no_verify;
  struct image dest_image;
  _Atomic int *signal;
  int signal_fd;
};

/* ---- the disk ---- */

static enum job_result
copy (struct restoring *r, const struct cmd_operand *dest, const char *file, json_t **report)
{
  char *const far[] = { (char *)file };
  char *const source[] = { (char *)"[",
                           (char *)"qemu-nbd",
                           (char *)"--format=qcow2",
                           (char *)"--read-only",
                           (char *)"--persistent",
                           (char *)"--shared=0",
                           (char *)file,
                           (char *)"]" };
  bool is_far = r->o.store.far != NULL;
  struct copy_options o = { .source = is_far ? far : source,
                            .nr_source = is_far ? 1 : sizeof source / sizeof source[0],
                            .source_only = r->which.disk->size,
                            .dest = r->settings.dest,
                            .sync = r->settings.sync,
                            .sparse = r->settings.sparse,
                            .rate_limit = r->settings.rate_limit,
                            .max_connections = r->settings.max_connections,
                            .opaque = &r->worker,
                            .message = worker_message,
                            .progress = worker_progress,
                            .signal = r->signal,
                            .signal_fd = r->signal_fd };

  o.dest.dest = dest->argv;
  o.dest.nr_dest = dest->nr_args;
  image_to_create (&r->dest_image, r->settings.dest_format, &o.dest.endpoint);
  if (!worker_join_budget (&r->settings, dest->argv[0], &o.budget))
    return JOB_FAILED;
  enum job_result result = copy_run (&o, report);
  budget_leave (o.budget);
  return result;
}

static bool
on_progress (void *opaque, uint64_t done, uint64_t size)
{
  verify_meter_show (opaque, done, size);
  return true;
}

/* Read DEST, and compare its digest with the one that was recorded. */
static int
compare (struct restoring *r, const struct cmd_operand *dest)
{
  const struct manifest_disk *d = r->which.disk;
  const struct endpoint_options eo
      = { .connect_timeout_ms = r->settings.dest.endpoint.connect_timeout_ms,
          .request_timeout_ms = r->settings.dest.endpoint.request_timeout_ms };
  struct verify_meter meter;
  const struct image_digest_options io
      = { .size = d->size, .opaque = &meter, .progress = on_progress };
  char digest[DIGEST_WHOLE_TEXT], *error = NULL;
  bool kept;

  if (d->size == 0)
    return EXIT_DONE;
  struct endpoint *ep = endpoint_open (dest->argv, dest->nr_args, &eo, NULL, &error);
  int result = -1;
  if (ep != NULL) {
    verify_meter_begin (&meter, !r->worker.json);
    result = image_digest (ep, &io, digest, &kept, &error);
    verify_meter_end (&meter);
    endpoint_close (ep);
  }
  if (result == -1) {
    cmd_say ("DEST was written, but cannot be read to be compared: %s", error);
    text_free (error);
    return EXIT_ERROR;
  }
  if (d->digest == NULL || strcmp (digest, d->digest) != 0) {
    cmd_say ("what was restored is not what was backed up: its digest is %s, and was %s;"
             " 'nbdmirror backup-verify' finds out whether the backup is damaged",
             digest, d->digest != NULL ? d->digest : "not recorded");
    return EXIT_DIFFERENT;
  }
  return EXIT_DONE;
}

/* The mark of a raw file tells a server's state file that the disk was written to behind its back
 * (base/tracked-mark.h).  Is DEST another disk, which somebody may have served already? */
static bool
has_no_mark (const struct restoring *r)
{
  bool is_image = r->dest_image.path[0] != '\0';
  struct stat st;

  return stat (is_image ? r->dest_image.path : r->dest, &st) == 0
         && (is_image || S_ISBLK (st.st_mode));
}

/* ---- files beside the disk ---- */

/* Copy the file M to TO, which must not be there. */
static int
fetch (struct restoring *r, const struct manifest_include *m, const char *to)
{
  char found[DIGEST_WHOLE_TEXT];
  CLEANUP_TEXT char *error = NULL;

  if (store_fetch (&r->o.store, m, to, &error) == -1) {
    cmd_say ("%s", error);
    return EXIT_ERROR;
  }
  int status = digest_of (to, "raw", false, NULL, found);
  if (status == EXIT_DONE && strcmp (found, m->digest) != 0) {
    cmd_say ("%s is not what was backed up: its digest is %s, and was %s", to, found, m->digest);
    status = EXIT_DIFFERENT;
  }
  return status;
}

static int
restore_included (struct restoring *r)
{
  const struct manifest *m = &r->which.entry->manifest;
  int status = EXIT_DONE;

  if (mkdir (r->included, 0777) == -1 && errno != EEXIST) {
    cmd_say ("%s: %s", r->included, strerror (errno));
    return EXIT_ERROR;
  }
  for (unsigned i = 0; i < m->nr_includes && status == EXIT_DONE; i++) {
    const struct manifest_include *f = &m->includes[i];
    const char *slash = strrchr (f->file, '/');
    CLEANUP_TEXT char *to = text_printf ("%s/%s", r->included, slash != NULL ? slash + 1 : f->file);
    status = fetch (r, f, to);
  }
  return status;
}

/* ---------------------------------------------------------------------------------------------- */

/* Is DEST in the repository, or one of its files under another name? */
static bool
is_in_repository (const struct restoring *r, const char *dest)
{
  const char *path = r->o.store.repo.path;
  size_t n = strcspn (path, "?");
  char full[PATH_MAX];
  struct stat st, its;

  if (uri_kind (dest) != URI_NONE)
    return strncmp (dest, path, n) == 0 && dest[n] == '/';
  CLEANUP_TEXT char *copy = text_copy (dest);
  if ((realpath (dest, full) != NULL || realpath (dirname (copy), full) != NULL)
      && strncmp (full, path, n) == 0 && (full[n] == '/' || full[n] == '\0'))
    return true;
  if (r->o.store.far != NULL || stat (dest, &st) == -1)
    return false;
  for (unsigned i = 0; i < r->o.list.nr; i++)
    for (unsigned d = 0; d < r->o.list.list[i].manifest.nr_disks; d++) {
      const char *file = r->o.list.list[i].manifest.disks[d].file;
      CLEANUP_TEXT char *name = repository_path (&r->o.store.repo, file != NULL ? file : "");
      if (stat (name, &its) == 0 && its.st_dev == st.st_dev && its.st_ino == st.st_ino)
        return true;
    }
  return false;
}

static int
restore (struct restoring *r, const struct cmd_operand *dest)
{
  CLEANUP_TEXT char *fault
      = store_chain_fault (&r->o.store, &r->o.list, r->which.entry->name, r->which.disk->id);
  CLEANUP_TEXT char *file = store_endpoint (&r->o.store, r->which.disk->file);
  char size[UNITS_BUF];
  json_t *report = NULL;

  if (is_in_repository (r, r->dest)) {
    cmd_say ("refused: %s is in the repository: its backups would be lost", r->dest);
    return EXIT_REFUSED;
  }
  if (fault != NULL) {
    cmd_say ("backup %s is broken: %s", r->which.entry->name, fault);
    return EXIT_ERROR;
  }
  if (!r->worker.json)
    r->worker.progress = progress_new (stderr, NULL);
  bool warn = has_no_mark (r); /* looked at before an image is made */
  enum job_result result = copy (r, dest, file, &report);
  int status = worker_finish (&r->worker, result, report);
  if (warn && result != JOB_REFUSED)
    cmd_warning ("%s cannot tell its server's state file that it was written to: remove that file"
                 " before the disk is served again",
                 r->dest);
  if (status == EXIT_DONE && !r->no_verify)
    status = compare (r, dest);
  else if (status == EXIT_DONE && !opened_still_good (&r->o, &r->which))
    status = EXIT_ERROR;
  if (status == EXIT_DONE && r->included != NULL)
    status = restore_included (r);
  if (status == EXIT_DONE && !r->worker.json)
    cmd_say ("restored: backup %s of '%s', %s%s", r->which.entry->name, r->which.disk->id,
             units_format_size (size, r->which.disk->size),
             r->no_verify ? "" : ", equal to what was backed up");
  return status;
}

/* Does the command line fit together?  EXIT_DONE, or an exit status after a message. */
static int
check_line (struct cmd_line *line, struct restoring *r)
{
  struct cmd_operand *dest = &line->operands[1];

  r->dest = dest->argv[0];
  if (line->operands[0].nr_args != 1)
    return cmd_usage_error ("REPO is the path of a directory");
  if (r->settings.sync.mode != ENGINE_SYNC_FULL && r->settings.sync.mode != ENGINE_SYNC_COMPARE)
    return cmd_usage_error ("--sync full or --sync compare: a backup has no other");
  if (worker_check_sync (&r->settings.sync) != 0)
    return EXIT_USAGE;
  if (!cmd_place_ok (line, dest)
      || !image_place (line, dest, "--dest-format", r->settings.dest_format, true, &r->dest_image))
    return line->status;
  return EXIT_DONE;
}

static int
run (struct cmd_line *line)
{
  struct restoring r = { .worker = { .ready_fd = -1 } };
  const char *at = NULL, *disk = NULL;
  int c, status = 0;

  while ((c = cmd_getopt (line)) != -1) {
    if (c == CMD_OPT_STOP)
      return line->status;
    if (c == OPT_AT)
      at = optarg;
    else if (c == OPT_DISK)
      disk = optarg;
    else if (c == OPT_NO_VERIFY)
      r.no_verify = true;
    else if (c == OPT_INCLUDED)
      r.included = optarg;
    else
      worker_option (c, &r.worker, &r.settings, &status);
    if (status != 0)
      return status;
  }
  if (!cmd_operands_ok (line, 2, 2, "REPO DEST"))
    return line->status;
  status = check_line (line, &r);
  if (status != EXIT_DONE)
    return status;
  r.signal_fd = worker_signals (&r.signal);
  if (r.signal_fd == -1)
    return EXIT_ERROR;
  status = opened_open (&r.o, line->operands[0].argv[0]);
  if (status == EXIT_DONE)
    status = opened_select (&r.o, at, disk, &r.which);
  if (status == EXIT_DONE)
    status = restore (&r, &line->operands[1]);
  opened_close (&r.o);
  return status;
}

const struct subcommand subcommand_restore = {
  "restore",
  "REPO DEST [OPTIONS]",
  "Restore a disk from a backup.",
  "Copies a disk out of a backup in REPO to DEST, a local file or block device, an NBD URI,\n"
  "ssh://HOST/PATH, or [ COMMAND ARGS ].  Then DEST is read and compared with the digest that was\n"
  "recorded when the backup was made.  With --sync compare only what differs is written to a disk\n"
  "that is there already.\n\n"
  "A block device, or an image in another format than raw, cannot tell its server's state file\n"
  "that it was written to: remove that file before the disk is served again.\n",
  options,
  NULL,
  "Examples:\n"
  "  nbdmirror restore /srv/backup vm.img\n"
  "  nbdmirror restore /srv/backup /dev/vg/vm --at '2026-01-31 23:59' --disk vda --sync compare\n",
  run,
};
