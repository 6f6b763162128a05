/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See journal.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/migrate/journal.h"

#define REDRAW_MS 250 /* on a terminal */
#define LINE_MS 5000  /* elsewhere */

static const struct {
  const char *name, *text;
} phases[] = {
  [PHASE_CHECK] = { "check", "looking at both sides" },
  [PHASE_ADOPT] = { "adopt", "putting the disks onto the tracked path" },
  [PHASE_MIRROR] = { "mirror", "copying the disks" },
  [PHASE_MEMORY] = { "memory", "copying the memory" },
  [PHASE_HOLD] = { "hold", "the guest is stopped: last blocks of the disks" },
  [PHASE_SWITCH] = { "switch", "last of the memory" },
  [PHASE_COMMIT] = { "commit", "handing the disks over" },
  [PHASE_START] = { "start", "starting the guest at the destination" },
  [PHASE_DONE] = { "done", "the guest runs at the destination" },
  [PHASE_BACK] = { "roll-back", "rolling back" },
  [PHASE_RETURN] = { "give-back", "taking the disks off the tracked path" },
  [PHASE_FAILED] = { "failed", "failed" },
};

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
journal_open (struct journal *j, const char *file)
{
  j->phase_ns = clock_ns ();
  j->rolled_back = json_array ();
  if (file == NULL)
    return 0;
  j->log_file = file;
  j->log = fopen (file, "ae");
  if (j->log == NULL) {
    cmd_say ("--log %s: %s", file, strerror (errno));
    return -1;
  }
  setlinebuf (j->log);
  if (is_cut_off (file))
    fputc ('\n', j->log);
  return 0;
}

void
journal_close (struct journal *j)
{
  if (j->log != NULL && fclose (j->log) != 0)
    cmd_warning ("--log %s: %s", j->log_file, strerror (errno));
  j->log = NULL;
  text_free (j->reason);
  json_decref (j->rolled_back);
}

static double
ms_since (uint64_t ns)
{
  return (double)(clock_ns () - ns) / NS_PER_MS;
}

void
journal_event (struct journal *j, const char *event, json_t *data)
{
  if (j->log != NULL) {
    json_t *line = json_pack ("{s:f, s:f, s:s}", "time", (double)clock_date_us () / US_PER_S, "ms",
                              ms_since (j->start_ns), "event", event);

    json_object_update (line, data);
    json_dumpf (line, j->log, JSON_COMPACT | JSON_REAL_PRECISION (14));
    fputc ('\n', j->log);
    json_decref (line);
  }
  json_decref (data);
}

void
journal_text (struct journal *j, const char *event, const char *text)
{
  journal_event (j, event, json_pack ("{s:s}", "text", text));
}

int
journal_fail_with (struct journal *j, int exit_status, char *text)
{
  journal_text (j, "failure", text);
  if (j->reason == NULL) {
    j->reason = text;
    j->exit_status = exit_status;
  } else
    text_free (text);
  return -1;
}

int
journal_fail (struct journal *j, int exit_status, const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  char *text = text_vprintf (fmt, args);
  va_end (args);
  return journal_fail_with (j, exit_status, text);
}

/* ---- phases --------------------------------------------------------------------------------- */

const char *
phase_name (enum phase phase)
{
  return phases[phase].name;
}

void
journal_phase (struct journal *j, enum phase phase)
{
  uint64_t now = clock_ns ();

  journal_event (j, "phase",
                 json_pack ("{s:s, s:s, s:f}", "phase", phases[phase].name, "after",
                            phases[j->phase].name, "took-ms",
                            (double)(now - j->phase_ns) / NS_PER_MS));
  j->took_ns[j->phase] += now - j->phase_ns;
  j->phase = phase;
  j->phase_ns = now;
}

static bool
on_terminal (const struct journal *j)
{
  return !j->json && isatty (STDERR_FILENO);
}

void
journal_show (struct journal *j, const char *detail)
{
  j->shown_ns = clock_ns ();
  if (on_terminal (j))
    fprintf (stderr, "\r\033[Knbdmirror: migrate: %s: %s%s, %.0f s", phases[j->phase].name,
             phases[j->phase].text, detail, ms_since (j->phase_ns) / MS_PER_S);
  else if (!j->json)
    cmd_say ("%s: %s%s", phases[j->phase].name, phases[j->phase].text, detail);
}

bool
journal_is_due (const struct journal *j)
{
  return ms_since (j->shown_ns) >= (on_terminal (j) ? REDRAW_MS : LINE_MS);
}

void
journal_break (const struct journal *j)
{
  if (on_terminal (j))
    fputs ("\r\033[K", stderr);
}

void
journal_rolled_back (struct journal *j, const char *fmt, ...)
{
  va_list args;

  va_start (args, fmt);
  char *text = text_vprintf (fmt, args);
  va_end (args);
  journal_text (j, "rolled-back", text);
  journal_break (j);
  if (!j->json)
    cmd_say ("roll-back: %s", text);
  json_array_append_new (j->rolled_back, json_string (text));
  text_free (text);
}
