/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror verify CONTROL: the copy of a live job is verified by its worker; this asks for it and
 * shows how it goes.
 */

#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/control-query.h"
#include "cmd/units.h"
#include "cmd/verify-meter.h"
#include "cmd/verify.h"
#include "cmd/worker.h"

#define POLL_MS 100

struct watching {
  struct control_client *c;
  const char *control;
  _Atomic int *signal;
  uint64_t mismatches_before; /* of earlier verifications of this job */
  struct verify_meter meter;
};

static uint64_t
count (const json_t *status, const char *key)
{
  double n = status_number (status, key, 0);
  return n > 0 ? (uint64_t)n : 0;
}

/* Wait for the end.  The last status (a new reference), or NULL after an error message; *STOPPED
 * if the user has had enough. */
static json_t *
wait_for_end (struct watching *w, bool *stopped)
{
  *stopped = false;
  for (;;) {
    json_t *status = NULL;
    if (query_call (w->c, w->control, "query-mirror", NULL, &status, NULL) == -1)
      return NULL;
    const char *state = status_text (status, "verify"), *worker = status_text (status, "worker");
    bool attached = worker != NULL && strcmp (worker, "attached") == 0;
    if (attached && state != NULL && strcmp (state, "running") != 0)
      return status;
    verify_meter_show (&w->meter, count (status, "verified-bytes"), count (status, "size"));
    json_decref (status);
    if (!attached) {
      verify_meter_end (&w->meter);
      cmd_say ("%s: the worker has gone", w->control);
      return NULL;
    }
    if (atomic_load (w->signal) != 0 && !*stopped) {
      *stopped = true;
      if (query_call (w->c, w->control, "mirror-verify", json_pack ("{s:b}", "stop", true), NULL,
                      NULL)
          == -1)
        return NULL;
    }
    clock_sleep_ms (POLL_MS);
  }
}

static void
print_json (const json_t *status, uint64_t found)
{
  static const char *const keys[] = { "size", "verified-bytes", "unsettled-bytes", NULL };
  json_t *o = json_pack ("{s:b, s:I}", "equal", found == 0, "mismatches", (json_int_t)found);

  for (const char *const *k = keys; *k != NULL; k++)
    json_object_set (o, *k, json_object_get (status, *k));
  json_object_set (o, "mismatch-offset",
                   found > 0 ? json_object_get (status, "mismatch-offset") : json_null ());
  json_dumpf (o, stdout, JSON_INDENT (2));
  putchar ('\n');
  json_decref (o);
}

static void
print_text (const json_t *status, uint64_t found)
{
  char size[UNITS_BUF];
  uint64_t verified = count (status, "verified-bytes");
  uint64_t unsettled = count (status, "unsettled-bytes");

  if (found > 0)
    printf ("different: %" PRIu64 " block%s, the first found at offset %" PRIu64 "; copied again\n",
            found, found == 1 ? "" : "s", count (status, "mismatch-offset"));
  else
    printf ("equal: %s (%" PRIu64 " bytes)\n", units_format_size (size, verified), verified);
  if (unsettled > 0)
    cmd_say ("%s were not verified: the guest writes there all the time",
             units_format_size (size, unsettled));
}

static int
finish (const struct watching *w, const json_t *status, bool stopped, bool json, bool quiet)
{
  uint64_t found = count (status, "mismatches") - w->mismatches_before;
  const char *state = status_text (status, "verify");

  if (json)
    print_json (status, found);
  else if (!quiet && (found > 0 || strcmp (state, "done") == 0))
    print_text (status, found);
  if (found > 0)
    return EXIT_DIFFERENT;
  if (stopped)
    return EXIT_CANCELLED;
  if (strcmp (state, "failed") == 0) {
    const char *why = status_text (status, "verify-error");
    cmd_say ("%s: not verified to the end: %s", w->control, why != NULL ? why : "no reason given");
    return EXIT_ERROR;
  }
  return EXIT_DONE;
}

int
verify_live (const char *control, bool json, bool quiet)
{
  struct watching w = { .control = control };
  json_t *before = NULL, *status = NULL;
  bool stopped = false;
  int result = EXIT_ERROR;

  if (worker_signals (&w.signal) == -1)
    return EXIT_ERROR;
  w.c = query_connect (control);
  if (w.c == NULL)
    return EXIT_ERROR;
  if (query_call (w.c, control, "query-mirror", NULL, &before, NULL) == 0
      && query_call (w.c, control, "mirror-verify", NULL, NULL, NULL) == 0) {
    w.mismatches_before = count (before, "mismatches");
    verify_meter_begin (&w.meter, !json && !quiet);
    status = wait_for_end (&w, &stopped);
    verify_meter_end (&w.meter);
    if (status != NULL)
      result = finish (&w, status, stopped, json, quiet);
  }
  json_decref (before);
  json_decref (status);
  control_client_free (w.c);
  return result;
}
