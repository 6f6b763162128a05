/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The command line of `complete`, and a hand-off from its beginning.  See complete.h.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "cmd/complete/complete.h"
#include "cmd/control-query.h"
#include "cmd/units.h"

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
  bool hurry = timeout_ms != 0 && timeout_ms < QUERY_MS;
  struct control_client *c = query_connect_within (control, hurry ? (int)timeout_ms : QUERY_MS);
  json_t *status = NULL;
  bool ready = false;

  if (c == NULL)
    return false;
  if (query_call (c, control, "query-mirror", NULL, &status, NULL) == 0) {
    const char *state = status_text (status, "state");
    if (state == NULL)
      state = "unknown";
    ready = strcmp (state, "ready") == 0 || status_is_true (status, "synchronised");
    if (status_handed_over (status) || strcmp (state, "prepared") == 0)
      *older = true;
    else if (strcmp (state, "idle") == 0 || strcmp (state, "completed") == 0)
      cmd_say ("%s: no job is running on this disk", control);
    else if (!ready)
      cmd_say ("%s: not ready: the state is '%s'; 'nbdmirror status' shows how far it is", control,
               state);
  }
  json_decref (status);
  control_client_free (c);
  return ready;
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
  int r = EXIT_ERROR;

  if (c->opts.lease_ms == 0)
    c->opts.lease_ms = PREPARE_ONLY_LEASE_MS;
  struct coordinator *h = coordinator_new (c->controls, c->nr, &c->opts, &error);
  if (h != NULL && before_hold (c, &error) == 0 && coordinator_prepare (h, NULL, &error) == 0
      && coordinator_keep (h, &error) == 0) {
    complete_print_prepared (c, h);
    r = EXIT_DONE;
  } else {
    cmd_say ("%s", error);
    hook_run_warn (&c->hooks, HOOK_ABORT, NULL, error);
    complete_print_refusal (c, error);
  }
  coordinator_free (h);
  text_free (error);
  return r;
}

static int
run_all (struct complete *c)
{
  struct coordinator_result result = { .nr = 0 };
  char *reason = NULL;

  c->opts.before_hold = before_hold;
  c->opts.opaque = c;
  int r = coordinator_run (c->controls, c->nr, &c->opts, &result, &reason);
  r = complete_finish (c, &result, r, reason);
  coordinator_result_free (&result);
  text_free (reason);
  return r;
}

static int
run_mode (struct complete *c)
{
  bool older = false;

  if (c->mode == COMPLETE_COMMIT || c->mode == COMPLETE_RELEASE)
    return complete_older (c);
  for (unsigned i = 0; i < c->nr; i++)
    if (!is_ready (c->controls[i], c->opts.timeout_ms, &older) && !older) {
      complete_print_refusal (c, "not every disk is ready");
      return EXIT_ERROR;
    }
  if (older)
    return complete_older (c);
  return c->mode == COMPLETE_PREPARE_ONLY ? prepare_only (c) : run_all (c);
}

/* The CONTROLs as an array, each given once.  NULL: return line->status. */
static char **
controls_of (struct cmd_line *line)
{
  char **controls = calloc (line->nr_operands, sizeof *controls);

  if (controls == NULL) {
    cmd_say ("out of memory");
    line->status = EXIT_ERROR;
    return NULL;
  }
  for (unsigned i = 0; i < line->nr_operands; i++) {
    controls[i] = line->operands[i].argv[0];
    for (unsigned j = 0; j < i; j++)
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
    if (!rollback_token_valid (optarg))
      return cmd_usage_error ("--rollback-token '%s': 1 to 64 characters of A-Z a-z 0-9 . _ -",
                              optarg);
    c->opts.token = optarg;
    return 0;
  case OPT_PREPARE:
  case OPT_COMMIT:
  case OPT_RELEASE:
    if (c->mode != COMPLETE_ALL)
      return cmd_usage_error ("--prepare-only, --commit and --release exclude each other");
    c->mode = opt == OPT_PREPARE  ? COMPLETE_PREPARE_ONLY
              : opt == OPT_COMMIT ? COMPLETE_COMMIT
                                  : COMPLETE_RELEASE;
    return 0;
  default:
    return hook_option (&c->hooks, opt) ? 0 : EXIT_USAGE;
  }
}

static const struct cmd_option options[] = {
  { "lease", OPT_LEASE, "TIME",
    "how long a guest may be held at most; past it the guest goes on and nothing is handed over "
    "(default: twice the largest max-downtime, at least 200ms, and 10ms for each further disk)" },
  { "timeout", OPT_TIMEOUT, "TIME",
    "give up when the disks are not prepared by then (default 1min, and the lease)" },
  { "waiters", OPT_WAITERS, "error|keep",
    "guest writes that wait at the hand-over fail with EPERM (default), or go on waiting, for a "
    "hypervisor that is about to be stopped" },
  { "rollback-token", OPT_TOKEN, "TOKEN",
    "the token that 'rollback' will ask for (default: a random one)" },
  { "json", 'j', NULL, "print the result as a JSON object" },
  HOOK_OPTIONS,
  { "", 0, NULL, "For an orchestrator that does something in between:" },
  { "prepare-only", OPT_PREPARE, NULL,
    "hold, copy and flush every disk, print the token, and leave them so until the lease ends "
    "(default 30s)" },
  { "commit", OPT_COMMIT, NULL,
    "with --token: hand over what is prepared; run it again to finish after a crash" },
  { "token", OPT_TOKEN, "TOKEN", "with --commit: the token that --prepare-only printed" },
  { "release", OPT_RELEASE, NULL, "let the guests go on at the source" },
  CMD_OPTIONS_END,
};

static int
run (struct cmd_line *line)
{
  struct complete c = { .mode = COMPLETE_ALL };
  int opt, r;

  while ((opt = cmd_getopt (line)) != -1) {
    if (opt == CMD_OPT_STOP)
      return line->status;
    r = take_option (&c, opt);
    if (r != 0)
      return r;
  }
  if (!cmd_operands_ok (line, 1, 0, "CONTROL"))
    return line->status;
  if (c.mode == COMPLETE_COMMIT && c.opts.token == NULL)
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
  "complete",
  "CONTROL... [OPTIONS]",
  "Hand over: from now on the destination is the disk.",
  "CONTROL is a disk's control socket.  Every disk must be ready.  Guest writes wait while the\n"
  "last blocks are copied; then the source refuses writes for good.  Several disks are handed\n"
  "over at one instant, or none is.\n",
  options,
  NULL,
  "Prints the pause of each disk and the rollback token.  A destination that 'nbdmirror receive'\n"
  "serves is sealed: nothing of the mirror's is written there any more.  Exit status 3: handed\n"
  "over, but that failed; do what the message says before the guest is started.\n\n"
  "Examples:\n"
  "  nbdmirror complete /var/lib/nbdmirror/vm1.control\n"
  "  nbdmirror complete /var/lib/nbdmirror/vm1-root.control \\\n"
  "            /var/lib/nbdmirror/vm1-data.control --lease 5s\n"
  "  nbdmirror complete --prepare-only --lease 60s --json A.control B.control\n"
  "  nbdmirror complete --commit --token 3f2a... A.control B.control\n",
  run
};
