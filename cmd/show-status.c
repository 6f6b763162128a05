/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See show-status.h.
 */

#include "config.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "cmd/control-query.h"
#include "cmd/show-status.h"
#include "cmd/units.h"

static void
line_start (const char *label)
{
  printf ("  %-11s ", label);
}

/* "1.27 GiB" or "-". */
static void
print_size (const json_t *status, const char *key)
{
  char buf[UNITS_BUF];
  double n = status_number (status, key, -1);

  printf ("%s", n < 0 ? "-" : units_format_size (buf, (uint64_t)n));
}

static void
print_rate (const json_t *status, const char *key)
{
  char buf[UNITS_BUF];
  double n = status_number (status, key, -1);

  printf ("%s", n < 0 ? "-" : units_format_rate (buf, n));
}

/* UNIT_MS is the unit of the value, in milliseconds. */
static void
print_time (const json_t *status, const char *key, double unit_ms)
{
  char buf[UNITS_BUF];
  double n = status_number (status, key, -1);

  printf ("%s", n < 0 ? "-" : units_format_time (buf, n * unit_ms));
}

static const char *
text_or_dash (const json_t *status, const char *key)
{
  const char *text = status_text (status, key);

  return text != NULL ? text : "-";
}

static bool
is_state (const json_t *status, const char *name)
{
  return strcmp (text_or_dash (status, "state"), name) == 0;
}

/* "yes (dirty 8.0 MiB/s, bandwidth 100 MiB/s)", and what the policy does about it. */
static void
print_verdict (const json_t *status)
{
  line_start ("converging");
  if (!json_is_boolean (json_object_get (status, "converging"))) {
    printf ("-\n");
  } else {
    printf ("%s (dirty ", status_is_true (status, "converging") ? "yes" : "no");
    print_rate (status, "dirty-rate");
    printf (", bandwidth ");
    print_rate (status, "bandwidth");
    printf (")\n");
  }
  if (status_text (status, "policy-action") == NULL)
    return;
  line_start ("policy");
  printf ("%s: %s\n", text_or_dash (status, "policy"), status_text (status, "policy-action"));
}

/* A forecast that was made before the worker or the destination was lost holds no longer. */
static void
print_forecast (const json_t *status)
{
  bool gone
      = strcmp (text_or_dash (status, "worker"), "attached") != 0 || is_state (status, "degraded");
  const json_t *now = gone ? NULL : status;

  line_start ("rate");
  print_rate (now, "bandwidth");
  if (status_number (status, "bandwidth-limit", 0) > 0) {
    printf (" (limit ");
    print_rate (status, "bandwidth-limit");
    printf (")");
  }
  if (status_text (status, "budget") != NULL) {
    printf (", budget %s", status_text (status, "budget"));
    if (status_number (status, "budget-limit", 0) > 0) {
      printf (" of ");
      print_rate (status, "budget-limit");
      printf (" (share ");
      print_rate (status, "budget-share");
      printf (")");
    }
  }
  printf ("\n");
  line_start ("dirty rate");
  print_rate (now, "dirty-rate");
  printf ("\n");
  print_verdict (now);
  line_start ("ETA");
  if (now != NULL && status_number (now, "eta-s", -1) == 0)
    printf ("now");
  else
    print_time (now, "eta-s", 1000);
  printf ("\n");
  line_start ("pause");
  printf ("expected ");
  print_time (now, "expected-downtime-ms", 1);
  printf (", allowed ");
  print_time (status, "max-downtime-ms", 1);
  printf ("\n");
}

/* What the line had to carry of it, where that is less. */
static void
print_compressed (const json_t *status)
{
  if (status_number (status, "wire-bytes", 0) >= status_number (status, "sent-bytes", 0)
      || !status_has_number (status, "wire-bytes"))
    return;
  printf (" (compressed to ");
  print_size (status, "wire-bytes");
  printf (")");
}

static void
print_progress (const json_t *status)
{
  char buf[UNITS_BUF];
  double percent = status_percent (status), left = status_left (status);

  line_start ("done");
  if (percent < 0)
    printf ("-\n");
  else
    printf ("%.1f %%\n", percent);
  line_start ("left");
  if (left < 0)
    printf ("-");
  else {
    printf ("%s (dirty ", units_format_size (buf, (uint64_t)left));
    print_size (status, "dirty-bytes");
    printf (is_state (status, "ready") ? ", waiting for a flush "
                                       : ", being copied "); /* see status_left() */
    print_size (status, "claimed-bytes");
    printf (", in quarantine ");
    print_size (status, "quarantine-bytes");
    printf (")");
  }
  printf ("\n");
  line_start ("sent");
  print_size (status, "sent-bytes");
  print_compressed (status);
  printf (", and zeroes for ");
  print_size (status, "zero-bytes");
  printf ("\n");
  print_forecast (status);
}

static void
print_completed (const json_t *status)
{
  line_start ("took");
  print_time (status, "total-s", 1000);
  printf (", passes ");
  if (status_has_number (status, "passes"))
    printf ("%.0f", status_number (status, "passes", 0));
  else
    printf ("-");
  printf (", sent ");
  print_size (status, "sent-bytes");
  printf (", pause ");
  print_time (status, "downtime-ms", 1);
  printf ("\n");
}

__attribute__ ((format (printf, 1, 2))) static void
print_note (const char *fmt, ...)
{
  va_list ap;

  line_start ("note");
  va_start (ap, fmt);
  vprintf (fmt, ap);
  va_end (ap);
  printf ("\n");
}

/* How long the destination's flush must take if it alone keeps the job from being ready; else 0. */
static double
slow_flush_ms (const json_t *status)
{
  double bandwidth = status_number (status, "bandwidth", 0), left = status_left (status);
  double pause = status_number (status, "expected-downtime-ms", 0);
  double allowed = status_number (status, "max-downtime-ms", 0);

  if (!is_state (status, "copying") || left < 0)
    return 0;
  if (bandwidth > 0)
    pause -= left / bandwidth * 1000;
  return pause > allowed ? pause : 0;
}

/* Advice in words, for an operator who was called because of this job. */
static void
print_notes (const json_t *status, const char *control)
{
  const char *worker = text_or_dash (status, "worker"), *gate = text_or_dash (status, "gate");
  const char *reason = status_text (status, "error"), *why = status_text (status, "reason");
  char buf[UNITS_BUF];
  bool over = is_state (status, "idle") || is_state (status, "completed")
              || is_state (status, "cancelled");

  if (is_state (status, "degraded"))
    print_note (
        "the destination cannot be used (%s in all so far): %s; changes go on being "
        "tracked, and it is tried again until it works, --give-up-after (never, by default) "
        "has passed, or 'cancel' gives up",
        units_format_time (buf, 1000 * status_number (status, "degraded-s", 0)),
        reason != NULL ? reason : "reason unknown");
  else if (reason != NULL)
    print_note ("%s", reason);
  if (why != NULL && why[0] != '\0' && !is_state (status, "idle"))
    print_note ("%s: %s", text_or_dash (status, "state"), why);
  if (slow_flush_ms (status) > 0)
    print_note ("not ready because the destination takes about %s to flush; 'nbdmirror set %s "
                "max-downtime=TIME' allows a longer pause",
                units_format_time (buf, slow_flush_ms (status)), control);
  if (status_number (status, "reconnects", 0) > 0)
    print_note ("%.0f reconnects to the destination, %s without it",
                status_number (status, "reconnects", 0),
                units_format_time (buf, 1000 * status_number (status, "degraded-s", 0)));
  if (status_number (status, "quarantine-bytes", 0) > 0 && !over)
    print_note ("blocks in quarantine are copied again and compared before the job is ready");
  if (strcmp (worker, "detached") == 0 && !over)
    print_note ("no worker: 'nbdmirror mirror %s DEST --resume' goes on, 'cancel' gives up",
                control);
  if (strcmp (gate, "held") == 0)
    print_note ("guest writes wait: a hand-over is under way");
  if (strcmp (gate, "fenced") == 0)
    print_note ("handed over: this disk refuses writes; 'rollback' with the token re-opens it");
}

/* "synchronous, synchronised; 1204 writes waited, up to 12 ms of 50 ms", and what the throttle lets
 * through. */
static void
print_gate (const json_t *status)
{
  const char *gate = text_or_dash (status, "gate");

  printf ("%s", gate);
  if (strcmp (gate, "throttled") == 0) {
    printf (" to ");
    print_rate (status, "dirty-limit");
    printf (" of newly dirty blocks");
  }
  if (strcmp (gate, "synchronous") == 0)
    printf (status_is_true (status, "synchronised") ? ", synchronised" : ", not synchronised");
  if (status_number (status, "delayed-writes", 0) > 0) {
    printf ("; %.0f writes waited, up to ", status_number (status, "delayed-writes", 0));
    print_time (status, "longest-write-delay-ms", 1);
    printf (" of ");
    print_time (status, "max-write-delay-ms", 1);
    if (status_number (status, "missed-writes", 0) > 0)
      printf (", %.0f in vain", status_number (status, "missed-writes", 0));
  }
  printf ("\n");
}

void
show_status (const json_t *status, const char *control)
{
  char buf[UNITS_BUF];

  printf ("%s\n", control);
  line_start ("state");
  printf ("%s", text_or_dash (status, "state"));
  if (status_has_number (status, "pass") && !is_state (status, "idle"))
    printf (", pass %.0f", status_number (status, "pass", 0));
  printf ("\n");
  line_start ("gate");
  print_gate (status);
  line_start ("worker");
  printf ("%s", text_or_dash (status, "worker"));
  if (status_text (status, "target") != NULL)
    printf (", to %s", status_text (status, "target"));
  printf ("\n");
  line_start ("disk");
  print_size (status, "size");
  if (status_has_number (status, "block-size"))
    printf (" in blocks of %s",
            units_format_size (buf, (uint64_t)status_number (status, "block-size", 0)));
  printf ("\n");
  if (is_state (status, "completed"))
    print_completed (status);
  else if (!is_state (status, "idle") && !is_state (status, "cancelled"))
    print_progress (status);
  if (status_text (status, "rollback-token") != NULL) {
    line_start ("rollback");
    printf ("%s\n", status_text (status, "rollback-token"));
  }
  print_notes (status, control);
}
