/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The progress line.
 *
 * A line is made of parts in falling order of importance, two spaces between them; on a narrow
 * terminal the last ones are left out whole, so that no number is ever cut in the middle.
 */

#include "config.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "cmd/control-query.h"
#include "cmd/show-progress.h"
#include "cmd/units.h"

#define REDRAW_MS 100
#define PART_MAX 160 /* bytes; a destination's error message may be long */
#define PARTS_MAX 12

struct progress {
  FILE *fp;
  char *name;
  bool terminal;
  bool open_line; /* terminal: the cursor stands behind a line of ours */
  bool printed;   /* anything yet? */
  uint64_t last_print;
  char state[24]; /* what was shown last */
  double pass;
  double moved, left; /* when something last moved, and when that was */
  uint64_t moved_at;
  bool any_move;
};

struct parts {
  unsigned nr;
  char text[PARTS_MAX][PART_MAX];
};

__attribute__ ((format (printf, 2, 3))) static void
add (struct parts *p, const char *fmt, ...)
{
  va_list ap;

  if (p->nr == PARTS_MAX)
    return;
  va_start (ap, fmt);
  vsnprintf (p->text[p->nr++], PART_MAX, fmt, ap);
  va_end (ap);
}

static bool
is_moving_state (const char *state)
{
  return strcmp (state, "copying") == 0 || strcmp (state, "throttled") == 0
         || strcmp (state, "synchronous") == 0;
}

static bool
is_final_state (const char *state)
{
  return strcmp (state, "completed") == 0 || strcmp (state, "cancelled") == 0
         || strcmp (state, "failed") == 0 || strcmp (state, "idle") == 0;
}

/* "copying pass 2", "degraded: connection refused", … */
static void
add_phase (struct parts *p, const json_t *status, const char *state)
{
  const char *reason = status_text (status, "error");
  double pass = status_number (status, "pass", 0);

  bool detached = status_text (status, "worker") != NULL
                  && strcmp (status_text (status, "worker"), "detached") == 0;
  if ((strcmp (state, "degraded") == 0 || strcmp (state, "failed") == 0) && reason != NULL)
    add (p, "%s: %s", state, reason);
  else if (is_moving_state (state) && pass > 0)
    add (p, "%s pass %.0f", state, pass);
  else
    add (p, "%s", state);
  if (detached && !is_final_state (state) && strcmp (state, "detached") != 0)
    add (p, "no worker");
}

static void
add_summary (struct parts *p, const json_t *status)
{
  char buf[UNITS_BUF];

  if (status_has_number (status, "sent-bytes"))
    add (p, "sent %s", units_format_size (buf, (uint64_t)status_number (status, "sent-bytes", 0)));
  if (status_has_number (status, "passes"))
    add (p, "%.0f passes", status_number (status, "passes", 0));
  if (status_has_number (status, "total-s"))
    add (p, "took %s", units_format_time (buf, 1000 * status_number (status, "total-s", 0)));
  if (status_has_number (status, "downtime-ms"))
    add (p, "pause %s", units_format_time (buf, status_number (status, "downtime-ms", 0)));
}

/* "converging: no", and what is done to the guest because of it. */
static void
add_verdict (struct parts *p, const json_t *status)
{
  const char *gate = status_text (status, "gate");
  char buf[UNITS_BUF];

  if (json_is_boolean (json_object_get (status, "converging")))
    add (p, "converging: %s", status_is_true (status, "converging") ? "yes" : "no");
  if (gate != NULL && strcmp (gate, "throttled") == 0 && status_has_number (status, "dirty-limit"))
    add (p, "guest throttled to %s",
         units_format_rate (buf, status_number (status, "dirty-limit", 0)));
  else if (gate != NULL && (strcmp (gate, "throttled") == 0 || strcmp (gate, "synchronous") == 0))
    add (p, "guest %s", gate);
}

static void
add_movement (struct parts *p, const json_t *status, const char *state, uint64_t stalled_ms)
{
  char buf[UNITS_BUF];
  double percent = status_percent (status), left = status_left (status);
  bool known = strcmp (state, "degraded") != 0; /* what was measured before says nothing now */

  if (percent >= 0)
    add (p, "%.1f %%", percent);
  if (left >= 0)
    add (p, "left %s", units_format_size (buf, (uint64_t)left));
  if (is_moving_state (state) && stalled_ms >= PROGRESS_STALL_MS)
    add (p, "stalled %s", units_format_time (buf, (double)(stalled_ms / 1000 * 1000)));
  else if (known && status_has_number (status, "bandwidth"))
    add (p, "%s", units_format_rate (buf, status_number (status, "bandwidth", 0)));
  if (is_moving_state (state) && status_number (status, "eta-s", 0) > 0)
    add (p, "ETA %s", units_format_time (buf, 1000 * status_number (status, "eta-s", 0)));
  if (status_has_number (status, "dirty-rate"))
    add (p, "dirty %s", units_format_rate (buf, status_number (status, "dirty-rate", 0)));
  if (known && is_moving_state (state))
    add_verdict (p, status);
  if (known && status_has_number (status, "expected-downtime-ms"))
    add (p, "pause %s", units_format_time (buf, status_number (status, "expected-downtime-ms", 0)));
  if (status_number (status, "reconnects", 0) > 0)
    add (p, "reconnects %.0f", status_number (status, "reconnects", 0));
}

/* Columns of UTF-8 text, near enough: bytes that begin a character. */
static unsigned
columns (const char *text)
{
  unsigned n = 0;

  for (; *text != '\0'; text++)
    n += ((unsigned char)*text & 0xc0) != 0x80;
  return n;
}

static void
cut_columns (char *text, unsigned width)
{
  unsigned n = 0;

  for (; *text != '\0'; text++)
    if (((unsigned char)*text & 0xc0) != 0x80 && n++ == width) {
      *text = '\0';
      return;
    }
}

/* A reason comes from a server: nothing in it may move the cursor. */
static void
blank_controls (char *text)
{
  for (; *text != '\0'; text++)
    if ((unsigned char)*text < 0x20 || *text == 0x7f)
      *text = ' ';
}

char *
progress_format (const json_t *status, uint64_t stalled_ms, unsigned width)
{
  struct parts p = { 0 };
  const char *state = status_text (status, "state");
  char *line = calloc (1, (size_t)PARTS_MAX * (PART_MAX + 2) + 1), *end = line;
  unsigned used = 0;

  if (line == NULL)
    return NULL;
  if (state == NULL)
    state = "unknown";
  add_phase (&p, status, state);
  if (is_final_state (state))
    add_summary (&p, status);
  else
    add_movement (&p, status, state, stalled_ms);

  for (unsigned i = 0; i < p.nr; i++) {
    unsigned need = columns (p.text[i]) + (i > 0 ? 2 : 0);

    if (width != 0 && i > 0 && used + need > width)
      break;
    if (i > 0)
      end = stpcpy (end, "  ");
    end = stpcpy (end, p.text[i]);
    used += need;
  }
  blank_controls (line);
  if (width != 0)
    cut_columns (line, width);
  return line;
}

/* ---- printing ------------------------------------------------------------------------------- */

struct progress *
progress_new (FILE *fp, const char *name)
{
  struct progress *p = calloc (1, sizeof *p);

  if (p == NULL)
    return NULL;
  p->fp = fp;
  p->terminal = isatty (fileno (fp)) == 1;
  if (name != NULL && (p->name = strdup (name)) == NULL) {
    free (p);
    return NULL;
  }
  return p;
}

bool
progress_is_on_terminal (const struct progress *p)
{
  return p->terminal;
}

void
progress_break (struct progress *p)
{
  if (p->open_line) {
    fputc ('\n', p->fp);
    fflush (p->fp);
    p->open_line = false;
  }
}

void
progress_free (struct progress *p)
{
  if (p == NULL)
    return;
  progress_break (p);
  free (p->name);
  free (p);
}

/* This is asked for at each line, because windows are resized. */
static unsigned
terminal_width (const struct progress *p)
{
  struct winsize ws;

  if (ioctl (fileno (p->fp), TIOCGWINSZ, &ws) == 0 && ws.ws_col > 1)
    return ws.ws_col - 1u; /* the last column would wrap on some terminals */
  return 79;
}

/* Holes that are skipped move no bytes, but what is left shrinks. */
static uint64_t
stalled_for (struct progress *p, const json_t *status, const char *state, uint64_t now_ms)
{
  double moved = status_number (status, "sent-bytes", 0) + status_number (status, "zero-bytes", 0);
  double left = status_left (status);

  if (!p->any_move || !is_moving_state (state) || strcmp (p->state, state) != 0 || moved != p->moved
      || left < p->left) {
    p->any_move = true;
    p->moved_at = now_ms;
    p->left = left;
  }
  p->moved = moved;
  return now_ms - p->moved_at;
}

void
progress_print (struct progress *p, json_t *status, uint64_t now_ms)
{
  const char *state = status_text (status, "state");
  double pass = status_number (status, "pass", 0);
  unsigned width = 0;

  if (state == NULL)
    state = "unknown";
  uint64_t stalled = stalled_for (p, status, state, now_ms);
  /* A job that is ready may begin a pass every few milliseconds. */
  bool changed = !p->printed || strcmp (p->state, state) != 0
                 || (is_moving_state (state) && pass != p->pass);
  if (!changed && now_ms - p->last_print < (p->terminal ? REDRAW_MS : PROGRESS_PLAIN_MS))
    return;
  snprintf (p->state, sizeof p->state, "%s", state);
  p->pass = pass;
  p->last_print = now_ms;
  p->printed = true;

  if (p->terminal) {
    width = terminal_width (p);
    unsigned name_width = p->name != NULL ? columns (p->name) + 2 : 0;
    width = width > name_width + 10 ? width - name_width : 10;
  }
  char *line = progress_format (status, stalled, width);
  if (line == NULL)
    return;
  fprintf (p->fp, "%s%s%s%s%s", p->terminal ? "\r" : "", p->name != NULL ? p->name : "",
           p->name != NULL ? ": " : "", line, p->terminal ? "\033[K" : "\n");
  fflush (p->fp);
  p->open_line = p->terminal;
  free (line);
}
