/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * migrate --dry-run: every check that comes before a migration, and a dry run of each disk's
 * mirror, one after the other.  Nothing is changed: no capability is set, no QEMU is told anything.
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/child.h"
#include "base/text.h"
#include "cmd/control-query.h"
#include "cmd/migrate/migrate.h"
#include "cmd/show-forecast.h"

/* What `mirror --dry-run` finds of D: a new reference, or NULL after its error message.  *STATUS:
 * its exit status. */
static json_t *
ask_worker (const struct migrate *m, const struct disk *d, int *status)
{
  const char *words[WORKER_WORDS];
  char path[4096], *output = NULL;
  unsigned n = worker_words (words, d, &m->options);

  words[n++] = "--dry-run";
  if (m->options.measure != NULL) {
    words[n++] = "--measure";
    words[n++] = m->options.measure;
  }
  words[n] = NULL;
  if (worker_program (path, sizeof path) != NULL)
    words[0] = path;
  *status = child_run (words, &output);
  json_t *found = output != NULL ? json_loads (output, 0, NULL) : NULL;
  free (output);
  if (*status < 0 || *status >= 128 || (found == NULL && *status == EXIT_DONE)) {
    cmd_say ("%s: its worker did not tell how it would go", d->control);
    *status = EXIT_ERROR;
  }
  return found;
}

/* One disk, for the report.  *STATUS as above. */
static json_t *
try_disk (const struct migrate *m, const struct disk *d, int *status)
{
  if (!m->options.json)
    printf ("%s\n", d->control);
  if (!d->ours) {
    *status = EXIT_DONE;
    if (!m->options.json)
      printf ("  a mirror is at work already: it is used as it is\n");
    return json_pack ("{s:s, s:s, s:b}", "control", d->control, "target", d->dest, "at-work", true);
  }
  fflush (stdout);
  json_t *found = ask_worker (m, d, status);
  if (found != NULL && !m->options.json)
    forecast_print (found);
  return found != NULL ? found
                       : json_pack ("{s:s, s:s, s:i}", "control", d->control, "target", d->dest,
                                    "exit-status", *status);
}

static json_t *
try_disks (const struct migrate *m, int *worst)
{
  json_t *disks = json_array ();

  for (unsigned i = 0; i < m->disks.nr && atomic_load (m->machines.signal) == 0; i++) {
    int status;

    json_array_append_new (disks, try_disk (m, &m->disks.disk[i], &status));
    if (*worst == EXIT_DONE)
      *worst = status;
  }
  if (atomic_load (m->machines.signal) != 0)
    *worst = EXIT_CANCELLED;
  return disks;
}

int
migrate_dry_run (struct migrate *m)
{
  int status = EXIT_DONE;
  json_t *disks = NULL;

  progress_phase (m, PHASE_CHECK);
  if (migrate_check_machines (m) == -1 || migrate_check_disks (m) == -1) {
    status = m->journal.exit_status;
    cmd_say ("%s", m->journal.reason);
  } else {
    journal_break (&m->journal);
    disks = try_disks (m, &status);
  }
  json_t *report
      = json_pack ("{s:s, s:i, s:o, s:o}", "result", "dry-run", "exit-status", status, "disks",
                   disks != NULL ? disks : json_array (), "error",
                   m->journal.reason != NULL ? json_string (m->journal.reason) : json_null ());
  journal_event (&m->journal, "report", json_incref (report));
  if (m->options.json) {
    json_dumpf (report, stdout, JSON_INDENT (2));
    putchar ('\n');
  } else if (status == EXIT_DONE)
    printf ("nothing stands in the way of this migration\n");
  if (m->options.report != NULL && report_write (m->options.report, report) == -1)
    cmd_warning ("--report %s: %s", m->options.report, strerror (errno));
  json_decref (report);
  return status;
}
