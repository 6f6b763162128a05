/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * complete: hand over one or several disks at one instant.  The work is in mirror/handoff.c.
 */

#include <config.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/job.h"
#include "cmd/units.h"
#include "mirror/handoff.h"

enum { OPT_LEASE = 0x100, OPT_TIMEOUT, OPT_WAITERS, OPT_TOKEN };

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
  *ms = (unsigned) n;
  return 0;
}

/* The filters would refuse as well, but only after the first guests were held. */
static bool
is_ready (const char *control)
{
  struct control_client *c = job_connect (control);
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
    if (strcmp (state, "completed") == 0)
      cmd_error ("%s: it was handed over already", control);
    else if (strcmp (state, "idle") == 0)
      cmd_error ("%s: no job is running on this disk", control);
    else if (!ready)
      cmd_error ("%s: not ready: the state is '%s'; 'nbdmirror status' shows how far it is", control,
                 state);
  }
  json_decref (status);
  control_client_free (c);
  return ready;
}

static json_t *
result_object (char *const controls[], const struct handoff_result *result, const char *reason)
{
  json_t *disks = json_array ();
  unsigned i;

  for (i = 0; i < result->nr; i++) {
    double ms = result->downtime_ms != NULL ? result->downtime_ms[i] : -1;

    json_array_append_new (disks,
                           json_pack ("{s:s, s:o}", "control", controls[i], "downtime-ms",
                                      ms >= 0 ? json_real (ms) : json_null ()));
  }
  return json_pack ("{s:b, s:o, s:o, s:o}", "committed", (int) result->committed, "rollback-token",
                    result->committed ? json_string (result->token) : json_null (), "error",
                    reason != NULL ? json_string (reason) : json_null (), "disks", disks);
}

static void
print_result (char *const controls[], const struct handoff_result *result)
{
  char buf[UNITS_BUF];
  unsigned i;

  for (i = 0; i < result->nr; i++)
    if (result->downtime_ms[i] >= 0)
      printf ("%s: handed over, pause %s\n", controls[i],
              units_format_time (buf, result->downtime_ms[i]));
    else
      printf ("%s: handed over, pause unknown\n", controls[i]);
  printf ("rollback token: %s\n", result->token);
}

static void
print_json (char *const controls[], const struct handoff_result *result, const char *reason)
{
  json_t *object = result_object (controls, result, reason);

  json_dumpf (object, stdout, JSON_INDENT (2) | JSON_REAL_PRECISION (6));
  printf ("\n");
  json_decref (object);
}

static int
hand_over (char *const controls[], unsigned nr, const struct handoff_options *opts, bool json)
{
  struct handoff_result result = { .nr = 0 };
  char *reason = NULL;
  unsigned i;
  int r;

  for (i = 0; i < nr; i++)
    if (!is_ready (controls[i])) {
      if (json)
        print_json (controls, &result, "not every disk is ready");
      return EXIT_ERROR;
    }
  r = handoff_run (controls, nr, opts, &result, &reason);
  if (r == -1)
    cmd_error ("%s", reason != NULL ? reason : "out of memory");
  if (json)
    print_json (controls, &result, reason);
  else if (result.committed)
    print_result (controls, &result);
  handoff_result_free (&result);
  free (reason);
  return r == 0 ? EXIT_DONE : EXIT_ERROR;
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

static int
run (struct cmd_line *line)
{
  static const struct option longopts[] = { { "json", no_argument, NULL, 'j' },
                                            { "lease", required_argument, NULL, OPT_LEASE },
                                            { "timeout", required_argument, NULL, OPT_TIMEOUT },
                                            { "waiters", required_argument, NULL, OPT_WAITERS },
                                            { "rollback-token", required_argument, NULL, OPT_TOKEN },
                                            CMD_LONG_OPTIONS_END };
  struct handoff_options opts = { 0 };
  bool json = false;
  char **controls;
  int opt, r;

  while ((opt = cmd_getopt (line, "j", longopts)) != -1)
    switch (opt) {
    case 'j':
      json = true;
      break;
    case OPT_LEASE:
      if ((r = parse_ms ("--lease", optarg, &opts.lease_ms)) != 0)
        return r;
      break;
    case OPT_TIMEOUT:
      if ((r = parse_ms ("--timeout", optarg, &opts.timeout_ms)) != 0)
        return r;
      break;
    case OPT_WAITERS:
      if (strcmp (optarg, "error") != 0 && strcmp (optarg, "keep") != 0)
        return cmd_usage_error ("--waiters %s: use error or keep", optarg);
      opts.waiters = optarg;
      break;
    case OPT_TOKEN:
      if (!handoff_token_ok (optarg))
        return cmd_usage_error ("--rollback-token '%s': 1 to 64 characters of A-Z a-z 0-9 . _ -",
                                optarg);
      opts.token = optarg;
      break;
    default:
      return line->status;
    }
  if (!cmd_operands_ok (line, 1, 0, "CONTROL"))
    return line->status;
  controls = controls_of (line);
  if (controls == NULL)
    return line->status;
  r = hand_over (controls, line->nr_operands, &opts, json);
  free (controls);
  return r;
}

const struct subcommand subcommand_complete = {
  "complete", "CONTROL... [OPTIONS]", "Hand over: from now on the destination is the disk.",
  "CONTROL is a disk's control socket.  Every disk must be ready.  Guest writes wait while the\n"
  "last blocks are copied; then the source refuses writes for good.  Several disks are handed\n"
  "over at one instant, or none is.\n"
  "  --lease TIME            how long a guest may be held at most; past it the guest goes on\n"
  "                          and nothing is handed over (default: 2 x max-downtime, at least 200ms)\n"
  "  --timeout TIME          give up when the disks are not prepared by then (default 1min)\n"
  "  --waiters error|keep    guest writes waiting at that instant fail (EPERM, the default),\n"
  "                          or go on waiting, for a hypervisor that is about to be stopped\n"
  "  --rollback-token TOKEN  the token that 'rollback' will ask for (default: a random one)\n"
  "  -j, --json              print the result as a JSON object\n\n"
  "Prints the pause of each disk and the rollback token.\n\n"
  "Examples:\n"
  "  nbdmirror complete /run/vm1.control\n"
  "  nbdmirror complete /run/vm1-root.control /run/vm1-data.control --lease 5s\n",
  run
};
