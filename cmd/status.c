/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * status: ask one or several control sockets, and show it to a person or as JSON.
 */

#include "config.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/control-query.h"
#include "cmd/show-status.h"
#include "cmd/units.h"

/* The documented fields.  All of them are printed, with null where the value is not known, because
 * the filter is older or there is no job yet. */
static const char *const fields[] = {
  "state",
  "pass",
  "size",
  "block-size",
  "dirty-bytes",
  "claimed-bytes",
  "quarantine-bytes",
  "sent-bytes",
  "wire-bytes",
  "zero-bytes",
  "sync",
  "skipped-bytes",
  "bandwidth",
  "dirty-rate",
  "bandwidth-limit",
  "budget",
  "budget-limit",
  "budget-share",
  "max-downtime-ms",
  "expected-downtime-ms",
  "eta-s",
  "converging",
  "policy",
  "policy-action",
  "synchronised",
  "gate",
  "worker",
  "reconnects",
  "degraded-s",
  "session",
  "downtime-ms",
  "total-s",
  "passes",
  "rollback-token",
  "error",
  "target",
  "sealed",
  "max-write-delay-ms",
  "delayed-writes",
  "missed-writes",
  "longest-write-delay-ms",
  "dirty-limit",
  "destination-proved",
  "unreadable-bytes",
  "unreadable-offset",
  "verify",
  "verified-bytes",
  "unsettled-bytes",
  "mismatches",
  "mismatch-offset",
  "verify-error",
};

struct options {
  bool json, watch;
  uint64_t interval_ms;
};

/* ---- asking --------------------------------------------------------------------------------- */

/* A status object for CONTROL (new reference), or NULL with *MESSAGE (caller frees). */
static json_t *
ask (const char *control, char **message)
{
  struct control_client *c = control_client_connect (control, QUERY_MS, message);
  json_t *status = NULL;

  if (c == NULL)
    return NULL;
  struct control_call call = { .command = "query-mirror", .timeout_ms = QUERY_MS, .ret = &status };
  int r = control_client_call (c, &call, message);
  control_client_free (c);
  if (r == -1)
    return NULL;
  if (!json_is_object (status)) {
    json_decref (status);
    *message = strdup ("the answer is not a status object");
    return NULL;
  }
  for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++)
    if (json_object_get (status, fields[i]) == NULL)
      json_object_set_new (status, fields[i], json_null ());
  json_object_set_new (status, "control", json_string (control));
  return status;
}

/* ---- one round ------------------------------------------------------------------------------ */

/* Ask and print all.  Returns EXIT_ERROR if one of them could not be asked; the others are printed
 * all the same.  *REACHED is how many could be asked. */
static int
show_all (const struct cmd_line *line, const struct options *o, unsigned *reached)
{
  json_t *array = json_array (), *status;
  int result = EXIT_DONE;

  *reached = 0;

  for (unsigned i = 0; i < line->nr_operands; i++) {
    const char *control = line->operands[i].argv[0];
    char *message = NULL;

    status = ask (control, &message);
    if (status == NULL) {
      query_failed (control, message);
      result = EXIT_ERROR;
      json_array_append_new (
          array, json_pack ("{s:s, s:n, s:s}", "control", control, "state", "error", message));
    } else {
      ++*reached;
      if (!o->json) {
        if (i > 0)
          printf ("\n");
        show_status (status, control);
      }
      json_array_append_new (array, status);
    }
    text_free (message);
  }
  if (o->json && (line->nr_operands > 1 || result == EXIT_DONE)) {
    json_dumpf (line->nr_operands == 1 ? json_array_get (array, 0) : array, stdout,
                o->watch ? JSON_COMPACT : JSON_INDENT (2));
    printf ("\n");
  }
  json_decref (array);
  return result;
}

static int
watch (const struct cmd_line *line, const struct options *o)
{
  bool terminal = isatty (STDOUT_FILENO) == 1, first = true;
  unsigned reached;

  for (;;) {
    if (!o->json && terminal)
      printf ("\033[H\033[2J");
    else if (!o->json && !first)
      printf ("\n");
    first = false;
    int result = show_all (line, o, &reached);
    if (fflush (stdout) != 0 || ferror (stdout)) /* nobody reads it any more */
      return EXIT_ERROR;
    if (reached == 0)
      return result;
    clock_sleep_ms ((unsigned)o->interval_ms);
  }
}

enum { OPT_INTERVAL = 0x100 };

static const struct cmd_option option_table[] = {
  { "json", 'j', NULL, "print one JSON object for one CONTROL, an array for several" },
  { "watch", 'w', NULL,
    "show it again every second, until interrupted or no server is left; with --json one line each "
    "time" },
  { "interval", OPT_INTERVAL, "TIME",
    "with --watch: how long to wait between two looks (100ms to 1h; default 1s)" },
  CMD_OPTIONS_END,
};

static int
run (struct cmd_line *line)
{
  struct options o = { .interval_ms = 1000 };
  const char *reason;
  bool interval = false;
  unsigned reached;
  int opt;

  while ((opt = cmd_getopt (line)) != -1)
    switch (opt) {
    case 'j':
      o.json = true;
      break;
    case 'w':
      o.watch = true;
      break;
    case OPT_INTERVAL:
      reason = units_parse_time (optarg, &o.interval_ms);
      if (reason == NULL && (o.interval_ms < 100 || o.interval_ms > 3600000))
        reason = "it must be 100ms to 1h";
      if (reason != NULL)
        return cmd_usage_error ("--interval %s: %s", optarg, reason);
      interval = true;
      break;
    default:
      return line->status;
    }
  if (!cmd_operands_ok (line, 1, 0, "CONTROL"))
    return line->status;
  if (interval && !o.watch)
    return cmd_usage_error ("--interval goes with --watch");
  return o.watch ? watch (line, &o) : show_all (line, &o, &reached);
}

const struct subcommand subcommand_status = {
  "status",
  "CONTROL... [OPTIONS]",
  "Show how mirroring a disk is going.",
  "CONTROL is a disk's control socket (serve --control).\n",
  option_table,
  NULL,
  "What nobody knows yet is shown as '-', in JSON as null.  A CONTROL that cannot be reached\n"
  "makes the exit status 1; the others are shown all the same.\n\n"
  "Examples:\n"
  "  nbdmirror status /var/lib/nbdmirror/vm1.control\n"
  "  nbdmirror status --json /var/lib/nbdmirror/vm*.control\n"
  "  nbdmirror status --watch --interval 5s /var/lib/nbdmirror/vm1.control\n",
  run
};
