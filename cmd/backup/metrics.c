/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup: what Prometheus is told, as a text file for the node exporter.
 *
 * A disk whose backup fails keeps the time of its last success, which is read from the file that is
 * replaced: "no success for a day" can then be noticed, whatever the repository is like.  All
 * values have the repository as a label, since the files of several backups are collected together.
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

#define LAST_SUCCESS "nbdmirror_backup_last_success_timestamp_seconds"

/* A label's value as Prometheus reads it. */
static char *
label (const char *text)
{
  char *out = text_copy ("");

  for (; *text != '\0'; text++) {
    const char *escape = *text == '\\'   ? "\\\\"
                         : *text == '"'  ? "\\\""
                         : *text == '\n' ? "\\n"
                                         : NULL;
    char *more
        = escape != NULL ? text_printf ("%s%s", out, escape) : text_printf ("%s%c", out, *text);
    text_free (out);
    out = more;
  }
  return out;
}

/* The labels of D. */
static char *
labels_of (const struct backup_run *run, const struct backup_disk *d)
{
  CLEANUP_TEXT char *repository = label (run->place), *id = label (d->id);

  return text_printf ("{repository=\"%s\",disk=\"%s\"}", repository, id);
}

/* When the disk with LABELS was last backed up, as the file at PATH says; -1: it does not. */
static int64_t
last_success (const char *path, const char *labels)
{
  CLEANUP_TEXT char *begin = text_printf ("%s%s ", LAST_SUCCESS, labels);
  FILE *f = fopen (path, "re");
  size_t room = 0, n = strlen (begin);
  char *line = NULL;
  int64_t value = -1;

  while (f != NULL && getline (&line, &room, f) != -1)
    if (strncmp (line, begin, n) == 0)
      value = strtoll (line + n, NULL, 10);
  free (line);
  if (f != NULL)
    fclose (f);
  return value;
}

static void
print_help (FILE *f, const char *name, const char *help)
{
  fprintf (f, "# HELP %s %s\n# TYPE %s gauge\n", name, help, name);
}

/* A text can only be a label. */
static void
print_reasons (FILE *f, const struct backup_run *run, bool success, const char *repository)
{
  print_help (f, "nbdmirror_backup_full_reason", "Why it was a full one.");
  for (unsigned i = 0; i < run->nr_disks; i++) {
    const struct backup_disk *d = &run->disks[i];
    CLEANUP_TEXT char *id = label (d->id), *reason = label (d->reason != NULL ? d->reason : "");
    if (success && d->error == NULL && d->full)
      fprintf (f, "nbdmirror_backup_full_reason{repository=\"%s\",disk=\"%s\",reason=\"%s\"} 1\n",
               repository, id, reason);
  }
}

static void
print_metrics (FILE *f, const struct backup_run *run, bool success)
{
  static const char *const names[]
      = { "nbdmirror_backup_success", "nbdmirror_backup_bytes", "nbdmirror_backup_full",
          "nbdmirror_backup_end_timestamp_seconds", LAST_SUCCESS };
  static const char *const helps[]
      = { "Did the last backup of the disk succeed?", "Size of the file that it has written.",
          "Was it a full one?", "When it ended.", "When the last one that succeeded ended." };
  CLEANUP_TEXT char *repository = label (run->place);
  int64_t now = clock_date_us () / US_PER_S;

  print_help (f, "nbdmirror_backup_duration_seconds", "How long the last run took.");
  fprintf (f, "nbdmirror_backup_duration_seconds{repository=\"%s\"} %.3f\n", repository,
           (double)(clock_ms () - run->begun_ms) / MS_PER_S);
  print_help (f, "nbdmirror_backup_guest_frozen", "Was the guest frozen at the instant?");
  fprintf (f, "nbdmirror_backup_guest_frozen{repository=\"%s\"} %d\n", repository,
           success && run->frozen);
  for (unsigned n = 0; n < sizeof names / sizeof names[0]; n++) {
    print_help (f, names[n], helps[n]);
    for (unsigned i = 0; i < run->nr_disks; i++) {
      const struct backup_disk *d = &run->disks[i];
      const struct manifest_disk *m = manifest_find_disk (&run->manifest, d->id);
      bool good = success && d->error == NULL && m != NULL;
      CLEANUP_TEXT char *labels = labels_of (run, d);
      const int64_t values[] = { good, good ? (int64_t)m->file_bytes : 0, good && d->full, now,
                                 good ? now : last_success (run->metrics, labels) };
      if (values[n] >= 0)
        fprintf (f, "%s%s %" PRId64 "\n", names[n], labels, values[n]);
    }
  }
  print_reasons (f, run, success, repository);
}

int
backup_write_metrics (const struct backup_run *run, bool success)
{
  CLEANUP_TEXT char *temporary = text_printf ("%s.tmp", run->metrics);
  FILE *f = fopen (temporary, "we");

  if (f == NULL)
    return -1;
  print_metrics (f, run, success);
  bool bad = ferror (f) != 0;
  if (fclose (f) != 0 || bad || rename (temporary, run->metrics) == -1) {
    int err = errno;
    unlink (temporary);
    errno = err;
    return -1;
  }
  return 0;
}
