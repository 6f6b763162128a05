/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What is told at the end of a migration.
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "cmd/control-query.h"
#include "cmd/migrate/migrate.h"
#include "cmd/units.h"

static json_t *
number_or_null (double n)
{
  return n >= 0 ? json_real (n) : json_null ();
}

static json_t *
disk_report (const struct migrate *m, unsigned i)
{
  static const char *const keys[]
      = { "sync", "sent-bytes", "wire-bytes", "skipped-bytes", "verified-bytes" };
  const struct disk *d = &m->disks.disk[i];
  double pause = m->result.downtime_ms != NULL ? m->result.downtime_ms[i] : -1;
  json_t *o = json_pack ("{s:s, s:s, s:o}", "control", d->control, "destination", d->dest,
                         "downtime-ms", number_or_null (pause));

  for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++) {
    json_t *value = json_object_get (d->status, keys[k]);
    json_object_set (o, keys[k], value != NULL ? value : json_null ());
  }
  return o;
}

/* Between the source's STOP and the destination's RESUME; -1: unknown. */
static double
guest_pause_ms (const struct migrate *m)
{
  uint64_t stop = m->machines.source.stop_ns, resume = m->machines.dest.resume_ns;

  return m->collected && stop > 0 && resume >= stop ? (double)(resume - stop) / NS_PER_MS : -1;
}

/* The disks' share of it. */
static double
disks_pause_ms (const struct migrate *m)
{
  const uint64_t *took_ns = m->journal.took_ns;

  return (double)(took_ns[PHASE_HOLD] + took_ns[PHASE_COMMIT]) / NS_PER_MS;
}

static double
total_s (const struct migrate *m)
{
  return (double)(clock_ns () - m->journal.start_ns) / NS_PER_S;
}

static json_t *
phases_report (const struct migrate *m)
{
  json_t *o = json_object ();

  for (int i = 0; i < PHASES; i++)
    if (m->journal.took_ns[i] > 0)
      json_object_set_new (o, phase_name ((enum phase)i),
                           json_real ((double)m->journal.took_ns[i] / NS_PER_MS));
  return o;
}

static const char *
outcome (const struct migrate *m)
{
  return m->journal.phase == PHASE_DONE ? "migrated"
         : m->committed                 ? "committed"
         : m->unresolved                ? "unresolved"
                                        : "rolled-back";
}

static json_t *
make_report (const struct migrate *m)
{
  const struct journal *j = &m->journal;
  json_t *disks = json_array ();

  for (unsigned i = 0; i < m->disks.nr; i++)
    json_array_append_new (disks, disk_report (m, i));
  return json_pack (
      "{s:s, s:i, s:f, s:o, s:o, s:o, s:I, s:o, s:o, s:O, s:o}", "result", outcome (m),
      "exit-status", j->exit_status, "total-s", total_s (m), "pause-ms",
      number_or_null (guest_pause_ms (m)), "disks-pause-ms",
      number_or_null (j->took_ns[PHASE_START] > 0 ? disks_pause_ms (m) : -1), "phases-ms",
      phases_report (m), "memory-bytes", m->memory_bytes, "disks", disks, "rollback-token",
      m->committed && m->result.token[0] != '\0' ? json_string (m->result.token) : json_null (),
      "rolled-back", j->rolled_back, "error",
      j->reason != NULL ? json_string (j->reason) : json_null ());
}

static void
print_report (const struct migrate *m)
{
  char bytes[UNITS_BUF], memory[UNITS_BUF], pause[UNITS_BUF];
  double sent = 0, pause_ms = guest_pause_ms (m);

  if (m->journal.phase != PHASE_DONE)
    return;
  if (m->recovering) {
    puts ("the guest runs at the destination");
    if (m->result.token[0] != '\0')
      printf ("rollback token: %s\n", m->result.token);
    return;
  }
  for (unsigned i = 0; i < m->disks.nr; i++)
    sent += status_number (m->disks.disk[i].status, "sent-bytes", 0);
  printf ("migrated in %.1f s: %s of disks, %s of memory; the guest paused for %s, %.1f ms of it "
          "for the disks\n",
          total_s (m), units_format_size (bytes, (uint64_t)sent),
          units_format_size (memory, (uint64_t)m->memory_bytes),
          pause_ms >= 0 ? units_format_time (pause, pause_ms) : "an unknown time",
          disks_pause_ms (m));
  for (unsigned i = 0; i < m->disks.nr; i++)
    if (m->result.downtime_ms != NULL && m->result.downtime_ms[i] >= 0)
      printf ("%s: handed over, held for %s\n", m->disks.disk[i].control,
              units_format_time (pause, m->result.downtime_ms[i]));
  printf ("rollback token: %s\n", m->result.token);
}

void
report_collect (struct migrate *m)
{
  struct machine *source = &m->machines.source;
  json_t *ret = NULL;
  CLEANUP_TEXT char *error = NULL;

  m->collected = true;
  if (!machine_is_lost (source)
      && machine_call (source, "query-migrate", NULL, &ret, NULL, &error) == 0)
    m->memory_bytes
        = json_integer_value (json_object_get (json_object_get (ret, "ram"), "transferred"));
  json_decref (ret);
  disks_reap (&m->disks);
  disks_refresh (&m->disks);
}

void
report_tell (struct migrate *m)
{
  json_t *report = make_report (m);

  journal_break (&m->journal);
  journal_event (&m->journal, "report", json_incref (report));
  if (m->options.json) {
    json_dumpf (report, stdout, JSON_INDENT (2) | JSON_REAL_PRECISION (9));
    putchar ('\n');
  } else
    print_report (m);
  if (m->options.report != NULL && report_write (m->options.report, report) == -1)
    cmd_warning ("--report %s: %s", m->options.report, strerror (errno));
  json_decref (report);
}
