/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What `complete` does at the end of a hand-off: the destinations are sealed, and it is told how it
 * went.
 */

#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <jansson.h>

#include "cmd/complete/complete.h"
#include "cmd/units.h"
#include "control/name.h"
#include "mirror/endpoint/seal.h"

int
complete_seal (struct complete *c)
{
  int r = EXIT_DONE;

  c->seals = calloc (c->nr, sizeof *c->seals);
  if (c->seals == NULL) {
    cmd_say ("handed over, and the destinations could not be sealed: out of memory");
    return EXIT_DEST_FAILED;
  }
  coordinator_seal_all (c->controls, c->nr, c->seals);
  for (unsigned i = 0; i < c->nr; i++) {
    const struct coordinator_seal *s = &c->seals[i];

    if (s->state == HANDOFF_SEAL_UNKNOWN)
      cmd_warning ("%s: %s: if it was a server of nbdmirror receive, 'nbdmirror receive --seal' it "
                   "before the guest"
                   " is started",
                   c->controls[i], s->error);
    if (s->state != HANDOFF_SEAL_FAILED)
      continue;
    cmd_warning (DESTINATION_UNSEALED, c->controls[i],
                 s->target != NULL ? s->target : "the destination", s->error,
                 s->target != NULL ? s->target : "URI");
    r = EXIT_DEST_FAILED;
  }
  return r;
}

static json_t *
sealed_or_null (const struct coordinator_seal *s)
{
  return s->state == HANDOFF_SEAL_DONE     ? json_true ()
         : s->state == HANDOFF_SEAL_FAILED ? json_false ()
                                           : json_null ();
}

static json_t *
text_or_null (const char *text)
{
  return text != NULL ? json_string (text) : json_null ();
}

/* ---- what is printed
 * ----------------------------------------------------------------------------- */

static json_t *
result_object (const struct complete *c, const struct coordinator_result *result,
               const char *reason)
{
  const struct coordinator_seal none = { .state = HANDOFF_SEAL_NONE };
  json_t *disks = json_array ();

  for (unsigned i = 0; i < result->nr; i++) {
    double ms = result->downtime_ms != NULL ? result->downtime_ms[i] : -1;
    const struct coordinator_seal *s = c->seals != NULL ? &c->seals[i] : &none;

    json_array_append_new (disks,
                           json_pack ("{s:s, s:o, s:o, s:o, s:o}", "control", c->controls[i],
                                      "downtime-ms", ms >= 0 ? json_real (ms) : json_null (),
                                      "target", text_or_null (s->target), "sealed",
                                      sealed_or_null (s), "seal-error", text_or_null (s->error)));
  }
  return json_pack ("{s:b, s:o, s:o, s:o}", "committed", (int)result->committed, "rollback-token",
                    result->committed ? json_string (result->token) : json_null (), "error",
                    reason != NULL ? json_string (reason) : json_null (), "disks", disks);
}

static void
print_result (const struct complete *c, const struct coordinator_result *result)
{
  char buf[UNITS_BUF];

  for (unsigned i = 0; i < result->nr; i++) {
    bool sealed = c->seals != NULL && c->seals[i].state == HANDOFF_SEAL_DONE;

    printf ("%s: handed over, pause %s%s\n", c->controls[i],
            result->downtime_ms[i] >= 0 ? units_format_time (buf, result->downtime_ms[i])
                                        : "unknown",
            sealed ? ", destination sealed" : "");
  }
  printf ("rollback token: %s\n", result->token);
}

static void
print_json (const struct complete *c, const struct coordinator_result *result, const char *reason)
{
  json_t *object = result_object (c, result, reason);

  if (c->mode == COMPLETE_PREPARE_ONLY)
    json_object_set_new (object, "prepared", json_false ());
  json_dumpf (object, stdout, JSON_INDENT (2) | JSON_REAL_PRECISION (6));
  printf ("\n");
  json_decref (object);
}

void
complete_print_refusal (const struct complete *c, const char *reason)
{
  const struct coordinator_result none = { .nr = 0 };

  if (c->json)
    print_json (c, &none, reason);
}

void
complete_print_done (const struct complete *c, const char *token, const char *reason)
{
  struct coordinator_result done = { .committed = true, .nr = c->nr };

  snprintf (done.token, sizeof done.token, "%s", token);
  if (c->json)
    print_json (c, &done, reason);
}

void
complete_print_prepared (const struct complete *c, const struct coordinator *h)
{
  if (!c->json) {
    printf ("prepared: %u disk%s held for at most %u ms\nrollback token: %s\n", c->nr,
            c->nr == 1 ? " is" : "s are", c->opts.lease_ms, coordinator_token (h));
    return;
  }
  json_t *disks = json_array ();
  for (unsigned i = 0; i < c->nr; i++)
    json_array_append_new (disks, json_pack ("{s:s, s:I}", "control", c->controls[i], "generation",
                                             (json_int_t)coordinator_generation (h, i)));
  json_t *object
      = json_pack ("{s:b, s:s, s:i, s:o}", "prepared", 1, "rollback-token", coordinator_token (h),
                   "lease-ms", (int)c->opts.lease_ms, "disks", disks);
  json_dumpf (object, stdout, JSON_INDENT (2));
  printf ("\n");
  json_decref (object);
}

static bool
of_qemu (const struct complete *c)
{
  for (unsigned i = 0; i < c->nr; i++)
    if (control_is_of_qemu (c->controls[i]))
      return true;
  return false;
}

int
complete_finish (struct complete *c, const struct coordinator_result *result, int r,
                 const char *reason)
{
  int sealed = EXIT_DONE;

  /* Only its worker knows whether the guest was let go on after all was prepared. */
  bool unsure = r == -1 && of_qemu (c);
  if (r == -1)
    cmd_say ("%s", reason);
  if (result->committed)
    sealed = complete_seal (c);
  /* It is there to start the guest. */
  if (result->committed && unsure)
    hook_not_run (&c->hooks, HOOK_AFTER_COMMIT,
                  "the guest of a disk that QEMU has open by itself may run on; if it has not, run"
                  " the command by hand, and do not run 'complete --commit' again, which would run"
                  " it in either case");
  else if (sealed != EXIT_DONE)
    hook_not_run (&c->hooks, HOOK_AFTER_COMMIT,
                  "a destination is not sealed; 'complete --commit' with the token"
                  " seals it, and then runs it");
  else if (result->committed)
    hook_run_warn (&c->hooks, HOOK_AFTER_COMMIT, result->token, NULL);
  else
    hook_run_warn (&c->hooks, HOOK_ABORT, NULL, reason);
  if (c->json)
    print_json (c, result, reason);
  else if (result->committed)
    print_result (c, result);
  return r == 0 ? sealed : EXIT_ERROR;
}
