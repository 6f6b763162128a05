/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What a migration tells: a log of JSON lines, a phase line on the terminal, the report at the end.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cmd/control-query.h"
#include "cmd/migrate/migrate.h"
#include "cmd/units.h"

#define REDRAW_MS 250 /* on a terminal */
#define LINE_MS 5000  /* elsewhere */

static const struct {
  const char *name, *text;
} phases[] = {
  [PHASE_CHECK] = { "check", "looking at both sides" },
  [PHASE_MIRROR] = { "mirror", "copying the disks" },
  [PHASE_MEMORY] = { "memory", "copying the memory" },
  [PHASE_HOLD] = { "hold", "the guest is stopped: last blocks of the disks" },
  [PHASE_SWITCH] = { "switch", "last of the memory" },
  [PHASE_COMMIT] = { "commit", "handing the disks over" },
  [PHASE_START] = { "start", "starting the guest at the destination" },
  [PHASE_DONE] = { "done", "the guest runs at the destination" },
  [PHASE_BACK] = { "roll-back", "rolling back" },
  [PHASE_FAILED] = { "failed", "failed" },
};

double
migrate_now (void)
{
  struct timespec ts;

  clock_gettime (CLOCK_MONOTONIC, &ts);
  return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

/* ---- the log -------------------------------------------------------------------------------- */

/* Does FILE end in the middle of a line?  Its writer was killed then. */
static bool
is_cut_off (const char *file)
{
  int fd = open (file, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  struct stat st;
  char last = '\n';

  if (fd == -1)
    return false;
  if (fstat (fd, &st) == 0 && S_ISREG (st.st_mode) && st.st_size > 0
      && pread (fd, &last, 1, st.st_size - 1) != 1)
    last = '\n';
  close (fd);
  return last != '\n';
}

int
log_open (struct migrate *m)
{
  m->phase_ms = migrate_now ();
  if (m->o.log == NULL)
    return 0;
  m->log = fopen (m->o.log, "ae");
  if (m->log == NULL) {
    cmd_error ("--log %s: %s", m->o.log, strerror (errno));
    return -1;
  }
  setlinebuf (m->log);
  if (is_cut_off (m->o.log))
    fputc ('\n', m->log);
  return 0;
}

void
log_event (struct migrate *m, const char *event, json_t *data)
{
  struct timespec ts;
  json_t *line;

  if (m->log != NULL) {
    clock_gettime (CLOCK_REALTIME, &ts);
    line = json_pack ("{s:f, s:f, s:s}", "time", (double)ts.tv_sec + (double)ts.tv_nsec / 1e9, "ms",
                      migrate_now () - m->start_ms, "event", event);
    json_object_update (line, data);
    json_dumpf (line, m->log, JSON_COMPACT | JSON_REAL_PRECISION (14));
    fputc ('\n', m->log);
    json_decref (line);
  }
  json_decref (data);
}

void
log_text (struct migrate *m, const char *event, const char *text)
{
  log_event (m, event, json_pack ("{s:s}", "text", text));
}

void
log_close (struct migrate *m)
{
  if (m->log != NULL && fclose (m->log) != 0)
    cmd_warning ("--log %s: %s", m->o.log, strerror (errno));
  m->log = NULL;
}

/* ---- the terminal --------------------------------------------------------------------------- */

static bool
on_terminal (const struct migrate *m)
{
  return !m->o.json && isatty (STDERR_FILENO);
}

/* Before a mirror has begun nothing is dirty either. */
static bool
is_copying (const json_t *status)
{
  const char *worker = job_text (status, "worker");

  return worker != NULL && strcmp (worker, "attached") == 0;
}

/* ", 12.0 MiB of 384 MiB left", or "". */
static void
memory_detail (const struct vm *vm, char *buf, size_t size)
{
  char left[UNITS_BUF], total[UNITS_BUF];

  buf[0] = '\0';
  if (vm->memory_total > 0)
    snprintf (buf, size, ", %s of %s left", units_format_size (left, (uint64_t)vm->memory_left),
              units_format_size (total, (uint64_t)vm->memory_total));
}

/* What is left of the phase, into BUF. */
static void
phase_detail (const struct migrate *m, char *buf, size_t size)
{
  double left = 0, percent = 100, p;
  char text[UNITS_BUF];
  unsigned i;
  bool known = true;

  buf[0] = '\0';
  if (m->phase != PHASE_MIRROR && m->phase != PHASE_MEMORY)
    return;
  if (m->phase == PHASE_MEMORY)
    memory_detail (&m->source, buf, size);
  for (i = 0; i < m->nr; i++) {
    double l = job_left (m->disks[i].status);

    if (l > 0)
      left += l;
    p = job_percent (m->disks[i].status);
    known = known && p >= 0 && is_copying (m->disks[i].status);
    if (p >= 0 && p < percent)
      percent = p;
  }
  if (!known)
    return;
  units_format_size (text, (uint64_t)left);
  if (m->phase == PHASE_MIRROR)
    snprintf (buf, size, ", %.1f %%, %s left", percent, text);
  else
    snprintf (buf + strlen (buf), size - strlen (buf), ", %s of the disks left", text);
}

static void
show (struct migrate *m)
{
  char detail[120];

  phase_detail (m, detail, sizeof detail);
  m->shown_ms = migrate_now ();
  if (on_terminal (m))
    fprintf (stderr, "\r\033[Knbdmirror: migrate: %s: %s%s, %.0f s", phases[m->phase].name,
             phases[m->phase].text, detail, (m->shown_ms - m->phase_ms) / 1e3);
  else if (!m->o.json)
    cmd_notice ("%s: %s%s", phases[m->phase].name, phases[m->phase].text, detail);
}

void
log_break (const struct migrate *m)
{
  if (on_terminal (m))
    fputs ("\r\033[K", stderr);
}

void
log_phase (struct migrate *m, enum phase phase)
{
  double now = migrate_now ();

  log_event (m, "phase",
             json_pack ("{s:s, s:s, s:f}", "phase", phases[phase].name, "after",
                        phases[m->phase].name, "took-ms", now - m->phase_ms));
  m->took_ms[m->phase] += now - m->phase_ms;
  m->phase = phase;
  m->phase_ms = now;
  guard_note (m);
  /* Nothing that could wait for a slow terminal while the guest is stopped; and a failure has its
   * message. */
  if (phase < PHASE_HOLD || phase == PHASE_BACK)
    show (m);
}

void
log_progress (struct migrate *m)
{
  if (migrate_now () - m->shown_ms >= (on_terminal (m) ? REDRAW_MS : LINE_MS))
    show (m);
}

void
log_rolled_back (struct migrate *m, const char *fmt, ...)
{
  char *text = NULL;
  va_list args;

  va_start (args, fmt);
  if (vasprintf (&text, fmt, args) == -1)
    text = NULL;
  va_end (args);
  if (text == NULL)
    return;
  log_text (m, "rolled-back", text);
  log_break (m);
  if (!m->o.json)
    cmd_notice ("roll-back: %s", text);
  json_array_append_new (m->rolled_back, json_string (text));
  free (text);
}

/* ---- the report ----------------------------------------------------------------------------- */

static json_t *
number_or_null (double n)
{
  return n >= 0 ? json_real (n) : json_null ();
}

static json_t *
disk_report (const struct migrate *m, unsigned i)
{
  const struct disk *d = &m->disks[i];
  json_t *sent = json_object_get (d->status, "sent-bytes");
  double pause = m->result.downtime_ms != NULL ? m->result.downtime_ms[i] : -1;

  return json_pack ("{s:s, s:s, s:O, s:o}", "control", d->control, "destination", d->dest,
                    "sent-bytes", sent != NULL ? sent : json_null (), "downtime-ms",
                    number_or_null (pause));
}

/* The disks' share of the guest's pause. */
static double
disks_pause (const struct migrate *m)
{
  return m->took_ms[PHASE_HOLD] + m->took_ms[PHASE_COMMIT];
}

static json_t *
phases_report (const struct migrate *m)
{
  json_t *o = json_object ();
  int i;

  for (i = 0; i < PHASES; i++)
    if (m->took_ms[i] > 0)
      json_object_set_new (o, phases[i].name, json_real (m->took_ms[i]));
  return o;
}

static const char *
outcome (const struct migrate *m)
{
  return m->phase == PHASE_DONE ? "migrated"
         : m->committed         ? "committed"
         : m->unresolved        ? "unresolved"
                                : "rolled-back";
}

static json_t *
make_report (const struct migrate *m)
{
  json_t *disks = json_array ();
  unsigned i;

  for (i = 0; i < m->nr; i++)
    json_array_append_new (disks, disk_report (m, i));
  return json_pack (
      "{s:s, s:i, s:f, s:o, s:o, s:o, s:I, s:o, s:o, s:O, s:o}", "result", outcome (m),
      "exit-status", m->exit_status, "total-s", (migrate_now () - m->start_ms) / 1e3, "pause-ms",
      number_or_null (m->guest_pause_ms), "disks-pause-ms",
      number_or_null (m->took_ms[PHASE_START] > 0 ? disks_pause (m) : -1), "phases-ms",
      phases_report (m), "memory-bytes", m->memory_bytes, "disks", disks, "rollback-token",
      m->committed ? json_string (m->result.token) : json_null (), "rolled-back", m->rolled_back,
      "error", m->reason != NULL ? json_string (m->reason) : json_null ());
}

static void
print_report (const struct migrate *m)
{
  char bytes[UNITS_BUF], memory[UNITS_BUF], pause[UNITS_BUF];
  double sent = 0;
  unsigned i;

  if (m->phase != PHASE_DONE)
    return;
  if (m->o.recover) {
    printf ("the guest runs at the destination\nrollback token: %s\n", m->result.token);
    return;
  }
  for (i = 0; i < m->nr; i++)
    sent += job_number (m->disks[i].status, "sent-bytes", 0);
  printf ("migrated in %.1f s: %s of disks, %s of memory; the guest paused for %s, %.1f ms of it "
          "for the disks\n",
          (migrate_now () - m->start_ms) / 1e3, units_format_size (bytes, (uint64_t)sent),
          units_format_size (memory, (uint64_t)m->memory_bytes),
          m->guest_pause_ms >= 0 ? units_format_time (pause, m->guest_pause_ms) : "an unknown time",
          disks_pause (m));
  for (i = 0; i < m->nr; i++)
    if (m->result.downtime_ms != NULL && m->result.downtime_ms[i] >= 0)
      printf ("%s: handed over, held for %s\n", m->disks[i].control,
              units_format_time (pause, m->result.downtime_ms[i]));
  printf ("rollback token: %s\n", m->result.token);
}

void
log_report (struct migrate *m)
{
  json_t *report = make_report (m);

  log_break (m);
  log_event (m, "report", json_incref (report));
  if (m->o.json) {
    json_dumpf (report, stdout, JSON_INDENT (2) | JSON_REAL_PRECISION (9));
    putchar ('\n');
  } else
    print_report (m);
  if (m->o.report != NULL && job_write_report (m->o.report, report) == -1)
    cmd_warning ("--report %s: %s", m->o.report, strerror (errno));
  json_decref (report);
}
