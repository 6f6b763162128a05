/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * How far a comparison of disks is.  See verify-meter.h.
 */

#include "config.h"

#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"
#include "cmd/show-progress.h"
#include "cmd/units.h"
#include "cmd/verify-meter.h"

#define REDRAW_MS 100 /* on a terminal; elsewhere PROGRESS_PLAIN_MS */

void
verify_meter_begin (struct verify_meter *m, bool show)
{
  m->show = show;
  m->terminal = isatty (STDERR_FILENO) == 1;
  m->start_ms = m->last_ms = clock_ms ();
}

void
verify_meter_show (struct verify_meter *m, uint64_t done, uint64_t size)
{
  uint64_t now = clock_ms ();
  char at[UNITS_BUF], of[UNITS_BUF], rate[UNITS_BUF], left[UNITS_BUF];

  if (!m->show || done == 0
      || now - m->last_ms < (uint64_t)(m->terminal ? REDRAW_MS : PROGRESS_PLAIN_MS))
    return;
  m->last_ms = now;
  double speed = (double)done / (double)(now - m->start_ms) * (double)MS_PER_S;
  fprintf (stderr, "%sverifying: %u %%, %s of %s, %s, %s left%s", m->terminal ? "\r" : "",
           (unsigned)(100 * (double)done / (double)size), units_format_size (at, done),
           units_format_size (of, size), units_format_rate (rate, speed),
           units_format_time (left, (double)(size - done) / speed * (double)MS_PER_S),
           m->terminal ? "\033[K" : "\n");
}

void
verify_meter_end (const struct verify_meter *m)
{
  if (m->show && m->terminal)
    fprintf (stderr, "\r\033[K");
}
