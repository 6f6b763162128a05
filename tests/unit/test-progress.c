/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proves what the progress line says in each phase, that unknown values are left out instead of
 * shown as numbers, that it fits the width, and that a job which moves nothing reads "stalled"
 * after ten seconds.
 */

#include "config.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jansson.h>

#include "cmd/show-progress.h"
#include "tests/unit/unit.h"

#define MIB 1048576

static json_t *
copying (int dirty_mib, int sent_mib)
{
  return json_pack ("{s:s, s:i, s:I, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:s}", "state",
                    "copying", "pass", 2, "size", (json_int_t)100 * MIB, "dirty-bytes",
                    (json_int_t)dirty_mib * MIB, "claimed-bytes", (json_int_t)0, "sent-bytes",
                    (json_int_t)sent_mib * MIB, "zero-bytes", (json_int_t)0, "bandwidth",
                    10.0 * MIB, "dirty-rate", 1.0 * MIB, "eta-s", 4.0, "expected-downtime-ms", 45.0,
                    "worker", "attached");
}

static void
line_is (json_t *status, uint64_t stalled_ms, unsigned width, const char *want)
{
  char *line = progress_format (status, stalled_ms, width);

  cr_assert_str_eq (line, want);
  free (line);
}

Test (progress, phases)
{
  json_t *s = copying (40, 60);

  line_is (s, 0, 0,
           "copying pass 2  60.0 %  left 40.0 MiB  10.0 MiB/s  ETA 4.0 s  dirty 1.00 MiB/s  "
           "pause 45 ms");
  line_is (s, 12345, 0,
           "copying pass 2  60.0 %  left 40.0 MiB  stalled 12.0 s  ETA 4.0 s  dirty 1.00 MiB/s  "
           "pause 45 ms");
  json_object_set_new (s, "converging", json_false ());
  json_object_set_new (s, "gate", json_string ("throttled"));
  json_object_set_new (s, "dirty-limit", json_integer (5 * MIB));
  line_is (s, 0, 0,
           "copying pass 2  60.0 %  left 40.0 MiB  10.0 MiB/s  ETA 4.0 s  dirty 1.00 MiB/s  "
           "converging: no  guest throttled to 5.00 MiB/s  pause 45 ms");
  json_object_set_new (s, "converging", json_true ());
  json_object_set_new (s, "gate", json_string ("synchronous"));
  line_is (s, 0, 0,
           "copying pass 2  60.0 %  left 40.0 MiB  10.0 MiB/s  ETA 4.0 s  dirty 1.00 MiB/s  "
           "converging: yes  guest synchronous  pause 45 ms");
  json_object_set_new (s, "state", json_string ("ready"));
  line_is (s, 60000, 0, "ready  60.0 %  left 40.0 MiB  10.0 MiB/s  dirty 1.00 MiB/s  pause 45 ms");
  json_object_set_new (s, "state", json_string ("degraded"));
  json_object_set_new (s, "error", json_string ("connection\nrefused\033[2J"));
  line_is (s, 0, 40, "degraded: connection refused [2J  60.0 %");
  json_decref (s);

  s = json_pack ("{s:s, s:I, s:i, s:f, s:f}", "state", "completed", "sent-bytes",
                 (json_int_t)100 * MIB, "passes", 3, "total-s", 61.0, "downtime-ms", 3.2);
  line_is (s, 0, 0, "completed  sent 100 MiB  3 passes  took 1 min 01 s  pause 3.2 ms");
  json_decref (s);
}

Test (progress, unknown_values)
{
  json_t *s = json_object ();

  line_is (s, 0, 0, "unknown");
  json_object_set_new (s, "state", json_string ("copying"));
  json_object_set_new (s, "bandwidth", json_null ());
  json_object_set_new (s, "size", json_string ("x"));
  line_is (s, 0, 0, "copying");
  json_object_set_new (s, "size", json_integer (0));
  json_object_set_new (s, "dirty-bytes", json_integer (0));
  line_is (s, 0, 0, "copying  100.0 %  left 0 B");
  json_decref (s);
}

Test (progress, never_100_percent_while_anything_is_left)
{
  json_t *s = json_pack ("{s:s, s:I, s:i}", "state", "copying", "size", (json_int_t)1 << 44,
                         "dirty-bytes", 1);

  line_is (s, 0, 0, "copying  99.9 %  left 1 B");
  json_decref (s);
}

Test (progress, width)
{
  json_t *s = copying (40, 60);

  for (unsigned width = 1; width < 120; width++) {
    char *line = progress_format (s, 0, width);

    cr_assert (strlen (line) <= width, "width %u: '%s'", width, line);
    free (line);
  }
  line_is (s, 0, 30, "copying pass 2  60.0 %");
  json_decref (s);
}

/* What progress_print() wrote, not on a terminal, when called with these statuses once a second. */
Test (progress, plain_lines_and_stall)
{
  char *out = NULL;
  FILE *fp = tmpfile ();
  struct progress *p = progress_new (fp, "vm1");
  json_t *s;
  int second;

  for (second = 0; second <= 30; second++) {
    s = copying (40, 60); /* nothing moves at all */
    progress_print (p, s, (uint64_t)second * 1000);
    json_decref (s);
  }
  progress_free (p);
  size_t len = (size_t)ftell (fp);
  rewind (fp);
  out = calloc (1, len + 1);
  cr_assert (fread (out, 1, len, fp) == len);
  fclose (fp);

  cr_assert (strncmp (out, "vm1: copying pass 2", 19) == 0, "%s", out);
  cr_assert (strchr (out, '\r') == NULL && strchr (out, '\033') == NULL);
  cr_assert (strstr (out, "stalled 10.0 s") != NULL, "%s", out);
  cr_assert (strstr (out, "stalled 30.0 s") != NULL, "%s", out);
  cr_assert (strstr (out, "stalled 5.0 s") == NULL, "%s", out);
  second = 0;
  for (len = 0; out[len] != '\0'; len++)
    second += out[len] == '\n';
  cr_assert (second == 7, "%d lines in 30 s", second); /* at 0, 5, … 30 s */
  free (out);
}

/* A job that is ready may begin a pass every few milliseconds: that is no reason for a line. */
Test (progress, passes_of_a_ready_job)
{
  FILE *fp = tmpfile ();
  struct progress *p = progress_new (fp, NULL);
  char out[8192];
  unsigned lines = 0;

  for (int pass = 0; pass < 100; pass++) {
    json_t *s = copying (0, 100);
    json_object_set_new (s, "state", json_string ("ready"));
    json_object_set_new (s, "pass", json_integer (pass));
    progress_print (p, s, (uint64_t)pass * 100);
    json_decref (s);
  }
  progress_free (p);
  rewind (fp);
  size_t n = fread (out, 1, sizeof out, fp);
  fclose (fp);
  for (size_t i = 0; i < n; i++)
    lines += out[i] == '\n';
  cr_assert (lines == 2, "%u lines in 10 s", lines); /* at 0 and 5 s */
}

/* Holes are skipped without a byte sent: what is left shrinks, and that is movement. */
Test (progress, skipping_holes_is_no_stall)
{
  FILE *fp = tmpfile ();
  struct progress *p = progress_new (fp, NULL);
  char out[8192];
  json_t *s;

  for (int second = 0; second <= 30; second++) {
    s = copying (90 - second, 0);
    progress_print (p, s, (uint64_t)second * 1000);
    json_decref (s);
  }
  progress_free (p);
  rewind (fp);
  size_t n = fread (out, 1, sizeof out - 1, fp);
  out[n] = '\0';
  fclose (fp);
  cr_assert (strstr (out, "stalled") == NULL, "%s", out);
}
