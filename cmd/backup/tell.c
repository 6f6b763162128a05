/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup: what it is going to be, and what has become of it: for people in one line, for programs
 * as JSON.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "cmd/backup/backup.h"
#include "cmd/control-query.h"
#include "cmd/units.h"

/* ---- the plan (--dry-run) ---- */

static json_t *
bytes_or_null (int64_t bytes)
{
  return bytes >= 0 ? json_integer (bytes) : json_null ();
}

static json_t *
plan_of (const struct backup_disk *d)
{
  return json_pack ("{s:s, s:s, s:o, s:I, s:o, s:o, s:o}", "id", d->id, "kind",
                    d->full ? "full" : "incremental", "reason", manifest_text_to_json (d->reason),
                    "size", (json_int_t)d->size, "bytes", bytes_or_null (d->changed),
                    "changed-bytes", bytes_or_null (d->full ? -1 : d->changed), "parent",
                    d->parent_backup != NULL ? json_string (d->parent_backup) : json_null ());
}

static void
print_plan (const struct backup_disk *d)
{
  char size[UNITS_BUF], bytes[UNITS_BUF] = "a part";

  if (d->changed >= 0)
    units_format_size (bytes, (uint64_t)d->changed);
  printf ("%s: %s, %s of %s: %s\n", d->id, d->full ? "full" : "incremental", bytes,
          units_format_size (size, d->size), d->reason);
}

static void
print_forecast (const struct backup_run *run)
{
  char took[UNITS_BUF];

  if (run->forecast_s >= 0)
    printf ("copying takes about %s\n", units_format_time (took, 1000 * run->forecast_s));
  else
    printf (
        "how long copying takes is not known: there is no --bandwidth, and no earlier backup\n");
}

void
backup_tell_plan (const struct backup_run *run)
{
  json_t *disks = json_array ();

  for (unsigned i = 0; i < run->nr_disks; i++)
    if (run->disks[i].error == NULL) {
      json_array_append_new (disks, plan_of (&run->disks[i]));
      if (!run->json)
        print_plan (&run->disks[i]);
    }
  if (run->json) {
    json_t *o = json_pack ("{s:o, s:O, s:o}", "repository", manifest_text_to_json (run->place),
                           "disks", disks, "seconds",
                           run->forecast_s >= 0 ? json_real (run->forecast_s) : json_null ());
    json_dumpf (o, stdout, JSON_INDENT (2));
    putchar ('\n');
    json_decref (o);
  } else if (json_array_size (disks) > 0)
    print_forecast (run);
  json_decref (disks);
}

/* ---- the end ---- */

/* "1 disk done", "all 3 disks done", "only 1 of 3 disks done".  To be freed. */
static char *
how_many (unsigned good, unsigned all)
{
  const char *disks = all == 1 ? "disk" : "disks";

  if (good < all)
    return text_printf ("only %u of %u %s done", good, all, disks);
  return text_printf ("%s%u %s done", all == 1 ? "" : "all ", all, disks);
}

/* One line that says it all, fit for the subject or the text of a mail. */
static void
print_line (const struct backup_run *run, unsigned good)
{
  char size[UNITS_BUF], took[UNITS_BUF], pause[UNITS_BUF];
  CLEANUP_TEXT char *disks = text_copy ("");
  double longest = -1;

  for (unsigned i = 0; i < run->nr_disks; i++) {
    const struct backup_disk *d = &run->disks[i];
    const struct manifest_disk *m = manifest_find_disk (&run->manifest, d->id);
    char *more
        = d->error != NULL || m == NULL
              ? text_printf ("%s, %s FAILED", disks, d->id)
              : text_printf ("%s, %s %s %s%s%s%s", disks, d->id, d->full ? "full" : "incremental",
                             units_format_size (size, m->file_bytes), d->full ? " (" : "",
                             d->full ? d->reason : "", d->full ? ")" : "");
    text_free (disks);
    disks = more;
    longest = d->pause_ms > longest ? d->pause_ms : longest;
  }
  units_format_time (took, (double)(clock_ms () - run->begun_ms));
  CLEANUP_TEXT char *done = how_many (good, run->nr_disks);
  printf ("backup %s: %s%s; %s, pause %s, took %s\n", run->name, done, disks,
          run->frozen                ? "guest frozen"
          : run->before_hold != NULL ? "guest NOT frozen, crash-consistent"
                                     : "crash-consistent",
          longest >= 0 ? units_format_time (pause, longest) : "unknown", took);
}

void
backup_tell_errors (struct backup_run *run)
{
  for (unsigned i = 0; i < run->nr_disks; i++) {
    struct backup_disk *d = &run->disks[i];
    if (d->error != NULL && !d->told)
      cmd_say ("%s: %s", d->id != NULL ? d->id : d->operand, d->error);
    d->told = d->error != NULL;
  }
}

int
backup_tell_end (struct backup_run *run, int status)
{
  unsigned good = 0;

  backup_tell_errors (run);
  for (unsigned i = 0; i < run->nr_disks; i++) {
    const struct backup_disk *d = &run->disks[i];
    good += d->error == NULL;
    if (d->error != NULL && status == EXIT_DONE)
      status = d->status;
  }
  bool written = run->manifest.sequence > 0;
  json_t *o = written ? manifest_to_json (&run->manifest) : NULL;
  if (o != NULL && run->json) {
    json_dumpf (o, stdout, JSON_INDENT (2));
    putchar ('\n');
  } else if (written)
    print_line (run, good);
  if (o != NULL && run->report != NULL && report_write (run->report, o) == -1) {
    cmd_say ("%s: %s", run->report, strerror (errno));
    status = status == EXIT_DONE ? EXIT_ERROR : status;
  }
  json_decref (o);
  if (run->metrics != NULL && !run->dry_run && backup_write_metrics (run, written) == -1) {
    cmd_say ("%s: %s", run->metrics, strerror (errno));
    status = status == EXIT_DONE ? EXIT_ERROR : status;
  }
  return status;
}
