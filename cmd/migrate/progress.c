/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The phase line, and how much is left.
 */

#include "config.h"

#include <stdio.h>
#include <string.h>

#include "cmd/control-query.h"
#include "cmd/migrate/migrate.h"
#include "cmd/units.h"

/* Before a mirror has begun nothing is dirty either. */
static bool
is_copying (const json_t *status)
{
  const char *worker = status_text (status, "worker");

  return worker != NULL && strcmp (worker, "attached") == 0;
}

/* ", 12.0 MiB of 384 MiB left", or "". */
static void
memory_detail (const struct machine *v, char *buf, size_t size)
{
  char left[UNITS_BUF], total[UNITS_BUF];

  buf[0] = '\0';
  if (v->memory_total > 0)
    snprintf (buf, size, ", %s of %s left", units_format_size (left, (uint64_t)v->memory_left),
              units_format_size (total, (uint64_t)v->memory_total));
}

/* Bytes left of all disks, and the least percentage.  False: a disk does not tell yet. */
static bool
disks_left (const struct disks *d, double *left, double *percent)
{
  bool known = true;

  *left = 0;
  *percent = 100;
  for (unsigned i = 0; i < d->nr; i++) {
    const json_t *status = d->disk[i].status;
    double bytes = status_left (status), p = status_percent (status);

    if (bytes > 0)
      *left += bytes;
    known = known && p >= 0 && is_copying (status);
    if (p >= 0 && p < *percent)
      *percent = p;
  }
  return known;
}

static void
show (struct migrate *m)
{
  enum phase phase = m->journal.phase;
  char detail[120] = "", text[UNITS_BUF];
  double left, percent;

  if (phase == PHASE_MEMORY)
    memory_detail (&m->machines.source, detail, sizeof detail);
  if ((phase == PHASE_MIRROR || phase == PHASE_MEMORY) && disks_left (&m->disks, &left, &percent)) {
    size_t n = strlen (detail);

    units_format_size (text, (uint64_t)left);
    if (phase == PHASE_MIRROR)
      snprintf (detail, sizeof detail, ", %.1f %%, %s left", percent, text);
    else
      snprintf (detail + n, sizeof detail - n, ", %s of the disks left", text);
  }
  journal_show (&m->journal, detail);
}

void
progress_phase (struct migrate *m, enum phase phase)
{
  journal_phase (&m->journal, phase);
  notes_dest_direct (m->notes, m->machines.dest.peer.is_qemu);
  notes_stopped (m->notes, m->machines.source.stop_ns);
  notes_settings (m->notes, m->machines.source.old_caps, m->machines.source.old_params);
  notes_phase (m->notes, phase);
  /* While the guest is stopped nothing may wait for a slow terminal; and a failure has a message of
   * its own. */
  if (phase < PHASE_HOLD || phase == PHASE_BACK || phase == PHASE_RETURN)
    show (m);
}

void
progress_update (struct migrate *m)
{
  if (journal_is_due (&m->journal))
    show (m);
}
