/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * complete: hand over one or several disks at one instant.  The work is in
 * mirror/handoff/coordinator.c.
 *
 * An orchestrator may take the steps apart: --prepare-only, and later --commit or --release in
 * another process.  The hand-off is then kept by the filters alone, until its lease ends.
 */

#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/hooks.h"
#include "cmd/control-query.h"
#include "cmd/units.h"
#include "mirror/handoff/seal-disks.h"
#include "mirror/handoff/coordinator.h"
#include "mirror/endpoint/seal.h"

enum {
  OPT_LEASE = 0x100,
  OPT_TIMEOUT,
  OPT_WAITERS,
  OPT_TOKEN,
  OPT_PREPARE,
  OPT_COMMIT,
  OPT_RELEASE
};

#define PREPARE_ONLY_LEASE_MS 30000

enum mode { ALL, PREPARE_ONLY, COMMIT, RELEASE };

struct complete {
  char **controls;
  unsigned nr;
  enum mode mode;
  struct coordinator_options opts;
  struct hooks hooks;
  bool json;
  struct coordinator_seal *seals; /* of each disk; NULL before the commit */
};

static int
parse_ms (const char *option, const char *text, unsigned *ms)
{
  uint64_t n;
  const char *reason = units_parse_time (text, &n);

  if (reason == NULL && n == 0)
    reason = "it must be more than 0";
  if (reason == NULL && n > 3600 * 1000)
    reason = "more than an hour";
  if (reason != NULL)
    return cmd_usage_error ("%s %s: %s", option, text, reason);
  *ms = (unsigned)n;
  return 0;
}

/* The filters would refuse as well, but only after the first guests were held.  *OLDER is set if a
 * hand-off of this disk is there already. */
static bool
is_ready (const char *control, unsigned timeout_ms, bool *older)
{
  bool hurry = timeout_ms != 0 && timeout_ms < JOB_CALL_MS;
  struct control_client *c = job_connect_within (control, hurry ? (int)timeout_ms : JOB_CALL_MS);
  const char *state;
  json_t *status = NULL;
  bool ready = false;

  if (c == NULL)
    return false;
  if (job_call (c, control, "query-mirror", NULL, &status, NULL) == 0) {
    state = job_text (status, "state");
    if (state == NULL)
      state = "unknown";
    ready = strcmp (state, "ready") == 0 || job_is_true (status, "synchronised");
    if (strcmp (state, "completed") == 0 || strcmp (state, "prepared") == 0)
      *older = true;
    else if (strcmp (state, "idle") == 0)
      cmd_error ("%s: no job is running on this disk", control);
    else if (!ready)
      cmd_error ("%s: not ready: the state is '%s'; 'nbdmirror status' shows how far it is",
                 control, state);
  }
  json_decref (status);
  control_client_free (c);
  return ready;
}

/* ---- no late worker may write under the guest --------------------------------------------------
 */

/* Seal every destination, and say where that failed.  EXIT_DONE, or EXIT_DEST_FAILED. */
static int
seal_all (struct complete *c)
{
  unsigned i;
  int r = EXIT_DONE;

  c->seals = calloc (c->nr, sizeof *c->seals);
  if (c->seals == NULL) {
    cmd_error ("handed over, and the destinations could not be sealed: out of memory");
    return EXIT_DEST_FAILED;
  }
  coordinator_seal_all (c->controls, c->nr, c->seals);
  for (i = 0; i < c->nr; i++) {
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
  unsigned i;

  for (i = 0; i < result->nr; i++) {
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
  unsigned i;

  for (i = 0; i < result->nr; i++) {
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

  json_dumpf (object, stdout, JSON_INDENT (2) | JSON_REAL_PRECISION (6));
  printf ("\n");
  json_decref (object);
}

static void
print_prepared (const struct complete *c, const struct coordinator *h)
{
  json_t *disks = json_array (), *object;
  unsigned i;

  if (!c->json) {
    printf ("prepared: %u disk%s held for at most %u ms\nrollback token: %s\n", c->nr,
            c->nr == 1 ? " is" : "s are", c->opts.lease_ms, coordinator_token (h));
    json_decref (disks);
    return;
  }
  for (i = 0; i < c->nr; i++)
    json_array_append_new (disks, json_pack ("{s:s, s:I}", "control", c->controls[i], "generation",
                                             (json_int_t)coordinator_generation (h, i)));
  object = json_pack ("{s:b, s:s, s:i, s:o}", "prepared", 1, "rollback-token",
                      coordinator_token (h), "lease-ms", (int)c->opts.lease_ms, "disks", disks);
  json_dumpf (object, stdout, JSON_INDENT (2));
  printf ("\n");
  json_decref (object);
}

/* Seal, and tell how it ended, with the hooks.  R is that of coordinator_finalize(). */
static int
finish (struct complete *c, const struct coordinator_result *result, int r, const char *reason)
{
  int sealed = EXIT_DONE;

  if (r == -1)
    cmd_error ("%s", reason != NULL ? reason : "out of memory");
  if (result->committed)
    sealed = seal_all (c);
  /* It is there to start the guest. */
  if (sealed != EXIT_DONE)
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

static int
before_hold (void *opaque, char **error)
{
  struct complete *c = opaque;

  return hook_run (&c->hooks, HOOK_BEFORE_HOLD, NULL, NULL, error);
}

static int
prepare_only (struct complete *c)
{
  char *error = NULL;
  struct coordinator *h;
  int r = EXIT_ERROR;

  if (c->opts.lease_ms == 0)
    c->opts.lease_ms = PREPARE_ONLY_LEASE_MS;
  h = coordinator_new (c->controls, c->nr, &c->opts, &error);
  if (h != NULL && before_hold (c, &error) == 0 && coordinator_prepare (h, NULL, &error) == 0
      && coordinator_keep (h, &error) == 0) {
    print_prepared (c, h);
    r = EXIT_DONE;
  } else {
    cmd_error ("%s", error != NULL ? error : "out of memory");
    hook_run_warn (&c->hooks, HOOK_ABORT, NULL, error);
  }
  coordinator_free (h);
  free (error);
  return r;
}

static int
run_all (struct complete *c)
{
  struct coordinator_result result = { .nr = 0 };
  char *reason = NULL;
  int r;

  c->opts.before_hold = before_hold;
  c->opts.opaque = c;
  r = coordinator_run (c->controls, c->nr, &c->opts, &result, &reason);
  r = finish (c, &result, r, reason);
  coordinator_result_free (&result);
  free (reason);
  return r;
}

/* ---- a hand-off that is there already ----------------------------------------------------------
 */

/* Commit H if that is still to be done, and finalize it. */
static int
finish_older (struct complete *c, struct coordinator *h, bool decide)
{
  struct coordinator_result result;
  char *reason = NULL;
  int r = -1;

  if (coordinator_result_init (&result, c->nr) == -1) {
    cmd_error ("out of memory");
    return EXIT_ERROR;
  }
  if (!decide || coordinator_commit (h, &reason) == 0)
    r = coordinator_finalize (h, &result, &reason);
  r = finish (c, &result, r, reason);
  coordinator_result_free (&result);
  free (reason);
  return r;
}

static int
release_older (struct complete *c, struct coordinator *h, const char *reason)
{
  if (coordinator_release (h) == DECISION_COMMIT) {
    cmd_error ("handed over already: only a rollback makes the source writable again");
    return EXIT_REFUSED;
  }
  cmd_notice ("released: every guest goes on at the source");
  hook_run_warn (&c->hooks, HOOK_ABORT, NULL, reason);
  return EXIT_DONE;
}

static int
commit_found (struct complete *c, struct coordinator *h, enum handoff_found found,
              const char *error)
{
  switch (found) {
  case HANDOFF_FOUND_NONE:
    cmd_error ("no hand-off of %s is prepared: it was released, or its lease has ended",
               c->controls[0]);
    return EXIT_ERROR;
  case HANDOFF_FOUND_BROKEN:
    cmd_error ("%s: nothing can be handed over", error != NULL ? error : "a disk is missing");
    release_older (c, h, error);
    return EXIT_ERROR;
  default:
    return finish_older (c, h, found == HANDOFF_FOUND_UNDECIDED);
  }
}

static int
release_found (struct complete *c, struct coordinator *h, enum handoff_found found)
{
  if (found == HANDOFF_FOUND_NONE) {
    cmd_notice ("no hand-off of these disks is prepared: nothing to release");
    return EXIT_DONE;
  }
  if (found == HANDOFF_FOUND_COMMITTED || found == HANDOFF_FOUND_DONE) {
    cmd_error ("handed over already: only a rollback makes the source writable again");
    return EXIT_REFUSED;
  }
  return release_older (c, h, "released");
}

/* A coordinator was killed, perhaps: finish what it had decided.  What it had not needs --commit or
 * --release. */
static int
rerun_found (struct complete *c, struct coordinator *h, enum handoff_found found)
{
  if (found == HANDOFF_FOUND_COMMITTED) {
    cmd_notice ("this hand-off was decided already; finishing it");
    return finish_older (c, h, false);
  }
  if (found == HANDOFF_FOUND_DONE) {
    int sealed = seal_all (c);
    cmd_error ("%s: it was handed over already, rollback token %s", c->controls[0],
               coordinator_token (h));
    return sealed != EXIT_DONE ? sealed : EXIT_ERROR;
  }
  cmd_error (
      "a hand-off is prepared, or in doubt: end it with --commit --token TOKEN, or with --release");
  return EXIT_ERROR;
}

static int
run_older (struct complete *c)
{
  enum handoff_found found;
  char *error = NULL;
  struct coordinator *h
      = coordinator_find (c->controls, c->nr, c->opts.token, c->opts.timeout_ms, &found, &error);
  int r;

  if (h == NULL) {
    cmd_error ("%s", error != NULL ? error : "out of memory");
    r = EXIT_ERROR;
  } else if (c->mode == COMMIT)
    r = commit_found (c, h, found, error);
  else if (c->mode == RELEASE)
    r = release_found (c, h, found);
  else
    r = rerun_found (c, h, found);
  coordinator_free (h);
  free (error);
  return r;
}

static int
run_mode (struct complete *c)
{
  const struct coordinator_result none = { .nr = 0 };
  bool older = false;
  unsigned i;

  if (c->mode == COMMIT || c->mode == RELEASE)
    return run_older (c);
  for (i = 0; i < c->nr; i++)
    if (!is_ready (c->controls[i], c->opts.timeout_ms, &older) && !older) {
      if (c->json)
        print_json (c, &none, "not every disk is ready");
      return EXIT_ERROR;
    }
  if (older)
    return run_older (c);
  return c->mode == PREPARE_ONLY ? prepare_only (c) : run_all (c);
}

/* The CONTROLs as an array, each given once.  NULL: return line->status. */
static char **
controls_of (struct cmd_line *line)
{
  char **controls = calloc (line->nr_operands, sizeof *controls);
  unsigned i, j;

  if (controls == NULL) {
    cmd_error ("out of memory");
    line->status = EXIT_ERROR;
    return NULL;
  }
  for (i = 0; i < line->nr_operands; i++) {
    controls[i] = line->operands[i].argv[0];
    for (j = 0; j < i; j++)
      if (strcmp (controls[i], controls[j]) == 0) {
        line->status = cmd_usage_error ("%s is given twice", controls[i]);
        free (controls);
        return NULL;
      }
  }
  return controls;
}

/* 0, or EXIT_USAGE. */
static int
take_option (struct complete *c, int opt)
{
  switch (opt) {
  case 'j':
    c->json = true;
    return 0;
  case OPT_LEASE:
    return parse_ms ("--lease", optarg, &c->opts.lease_ms);
  case OPT_TIMEOUT:
    return parse_ms ("--timeout", optarg, &c->opts.timeout_ms);
  case OPT_WAITERS:
    if (strcmp (optarg, "error") != 0 && strcmp (optarg, "keep") != 0)
      return cmd_usage_error ("--waiters %s: use error or keep", optarg);
    c->opts.waiters = optarg;
    return 0;
  case OPT_TOKEN:
    if (!coordinator_token_ok (optarg))
      return cmd_usage_error ("--rollback-token '%s': 1 to 64 characters of A-Z a-z 0-9 . _ -",
                              optarg);
    c->opts.token = optarg;
    return 0;
  case OPT_PREPARE:
  case OPT_COMMIT:
  case OPT_RELEASE:
    if (c->mode != ALL)
      return cmd_usage_error ("--prepare-only, --commit and --release exclude each other");
    c->mode = opt == OPT_PREPARE ? PREPARE_ONLY : opt == OPT_COMMIT ? COMMIT : RELEASE;
    return 0;
  default:
    return hook_option (&c->hooks, opt) ? 0 : EXIT_USAGE;
  }
}

static int
run (struct cmd_line *line)
{
  static const struct option longopts[]
      = { { "json", no_argument, NULL, 'j' },
          { "lease", required_argument, NULL, OPT_LEASE },
          { "timeout", required_argument, NULL, OPT_TIMEOUT },
          { "waiters", required_argument, NULL, OPT_WAITERS },
          { "rollback-token", required_argument, NULL, OPT_TOKEN },
          { "token", required_argument, NULL, OPT_TOKEN },
          { "prepare-only", no_argument, NULL, OPT_PREPARE },
          { "commit", no_argument, NULL, OPT_COMMIT },
          { "release", no_argument, NULL, OPT_RELEASE },
          HOOK_LONG_OPTIONS,
          CMD_LONG_OPTIONS_END };
  struct complete c = { .mode = ALL };
  int opt, r;

  while ((opt = cmd_getopt (line, "j", longopts)) != -1) {
    if (opt == CMD_OPT_STOP)
      return line->status;
    r = take_option (&c, opt);
    if (r != 0)
      return r;
  }
  if (!cmd_operands_ok (line, 1, 0, "CONTROL"))
    return line->status;
  if (c.mode == COMMIT && c.opts.token == NULL)
    return cmd_usage_error ("--commit needs --token: --prepare-only printed it");
  c.controls = controls_of (line);
  if (c.controls == NULL)
    return line->status;
  c.nr = line->nr_operands;
  c.hooks.controls = c.controls;
  c.hooks.nr_controls = c.nr;
  r = run_mode (&c);
  if (c.seals != NULL)
    coordinator_seal_free (c.seals, c.nr);
  free (c.seals);
  free (c.controls);
  return r;
}

const struct subcommand subcommand_complete = {
  "complete", "CONTROL... [OPTIONS]", "Hand over: from now on the destination is the disk.",
  "CONTROL is a disk's control socket.  Every disk must be ready.  Guest writes wait while the\n"
  "last blocks are copied; then the source refuses writes for good.  Several disks are handed\n"
  "over at one instant, or none is.\n"
  "  --lease TIME            how long a guest may be held at most; past it the guest goes on\n"
  "                          and nothing is handed over (default: 2 x max-downtime, at least "
  "200ms)\n"
  "  --timeout TIME          give up when the disks are not prepared by then (default 1min)\n"
  "  --waiters error|keep    guest writes waiting at that instant fail (EPERM, the default),\n"
  "                          or go on waiting, for a hypervisor that is about to be stopped\n"
  "  --rollback-token TOKEN  the token that 'rollback' will ask for (default: a random one)\n"
  "  -j, --json              print the result as a JSON object\n" HOOK_OPTIONS_HELP
  "\nFor an orchestrator that does something in between:\n"
  "  --prepare-only          hold, copy and flush every disk, print the token, and leave it so\n"
  "                          until the lease ends (default 30s)\n"
  "  --commit --token TOKEN  hand over what is prepared; again, to finish after a crash\n"
  "  --release               let the guests go on at the source\n\n"
  "Prints the pause of each disk and the rollback token.  A destination that 'nbdmirror receive'\n"
  "serves is sealed: nothing of the mirror's is written there any more.  Exit status 3: handed\n"
  "over, but that failed; do what the message says before the guest is started.\n\n"
  "Examples:\n"
  "  nbdmirror complete /run/vm1.control\n"
  "  nbdmirror complete /run/vm1-root.control /run/vm1-data.control --lease 5s\n"
  "  nbdmirror complete --prepare-only --lease 60s --json A.control B.control\n"
  "  nbdmirror complete --commit --token 3f2a... A.control B.control\n",
  run
};
