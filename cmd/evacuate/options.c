/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * evacuate-disk: the command line.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "cmd/evacuate/evacuate.h"
#include "cmd/serve/paths.h"
#include "cmd/units.h"

enum {
  OPT_OVERWRITE = 0x100,
  OPT_LEASE,
  OPT_PIDFILE,
  OPT_STATE,
  OPT_RESUME,
  OPT_RESTART,
  OPT_BANDWIDTH,
  OPT_DOWNTIME,
  OPT_POLICY,
  OPT_STALLED,
  OPT_BUDGET,
  OPT_SYNC,
  OPT_BASE,
  OPT_BASE_FORMAT,
  OPT_TRUST_BASE,
  OPT_FORMAT
};

static void
pass_on (struct evacuate *e, const char *option, char *value)
{
  e->worker_args[e->nr_worker_args++] = (char *)option;
  if (value != NULL)
    e->worker_args[e->nr_worker_args++] = value;
}

/* 0, or EXIT_USAGE. */
static int
take_lease (struct evacuate *e)
{
  uint64_t ms;
  const char *reason = units_parse_time (optarg, &ms);

  if (reason == NULL && (ms == 0 || ms > 3600 * 1000))
    reason = "must be between 1ms and 1h";
  if (reason != NULL)
    return cmd_usage_error ("--lease %s: %s", optarg, reason);
  e->lease_ms = (unsigned)ms;
  return 0;
}

/* What to send.  *TAKEN: OPT is such an option.  0, or EXIT_USAGE. */
static int
take_sync (struct evacuate *e, int opt, bool *taken)
{
  *taken = true;
  switch (opt) {
  case OPT_SYNC:
    pass_on (e, "--sync", optarg);
    return sync_parse (optarg, &e->sync.mode) && e->sync.mode != ENGINE_SYNC_INCREMENTAL
               ? 0
               : cmd_usage_error ("--sync %s: must be full, top, base or compare", optarg);
  case OPT_BASE:
    e->sync.base = optarg;
    pass_on (e, "--base", optarg);
    return 0;
  case OPT_BASE_FORMAT:
    e->sync.base_format = optarg;
    pass_on (e, "--base-format", optarg);
    return 0;
  case OPT_TRUST_BASE:
    e->sync.trust_base = true;
    pass_on (e, "--trust-base", NULL);
    return 0;
  }
  *taken = false;
  return 0;
}

/* 0, or EXIT_USAGE. */
static int
take_option (struct evacuate *e, int opt)
{
  bool taken;
  int status = take_sync (e, opt, &taken);

  if (taken)
    return status;
  switch (opt) {
  case 'j':
    e->json = true;
    break;
  case OPT_FORMAT:
    e->new.format = optarg;
    pass_on (e, "--dest-format", optarg);
    break;
  case OPT_OVERWRITE:
    e->overwrite = true;
    break;
  case OPT_RESUME:
    e->resume = true;
    pass_on (e, "--resume", NULL);
    break;
  case OPT_RESTART:
    e->resume = true;
    pass_on (e, "--restart", NULL);
    break;
  case OPT_BANDWIDTH:
    pass_on (e, "--bandwidth", optarg);
    break;
  case OPT_BUDGET:
    pass_on (e, "--budget", optarg);
    break;
  case OPT_DOWNTIME:
    pass_on (e, "--max-downtime", optarg);
    break;
  case OPT_POLICY:
    pass_on (e, "--policy", optarg);
    break;
  case OPT_STALLED:
    pass_on (e, "--give-up-if-stalled", optarg);
    break;
  case OPT_PIDFILE:
    text_free (e->pidfile);
    e->pidfile = server_absolute_path ("--pidfile", optarg);
    return e->pidfile != NULL ? 0 : EXIT_USAGE;
  case OPT_STATE:
    text_free (e->state);
    e->state = server_absolute_path ("--state", optarg);
    return e->state != NULL ? 0 : EXIT_USAGE;
  case OPT_LEASE:
    return take_lease (e);
  }
  return 0;
}

const struct cmd_option evacuate_options[] = {
  { "format", OPT_FORMAT, "FORMAT",
    "the format of NEWDISK: raw (default), or another one that qemu-nbd knows, for instance "
    "qcow2" },
  { "overwrite", OPT_OVERWRITE, NULL, "use a NEWDISK that is not empty, or a block device" },
  { "bandwidth", OPT_BANDWIDTH, "RATE", "as for 'mirror'" },
  { "budget", OPT_BUDGET, "NAME[:WEIGHT]", "as for 'mirror'" },
  { "max-downtime", OPT_DOWNTIME, "TIME", "as for 'mirror'" },
  { "policy", OPT_POLICY, "sync|throttle|none|fail", "as for 'mirror'" },
  { "give-up-if-stalled", OPT_STALLED, "TIME", "as for 'mirror'" },
  { "sync", OPT_SYNC, "full|top|base|compare",
    "as for 'mirror'; what NEWDISK holds already (needs --overwrite) is not written again" },
  { "base", OPT_BASE, "IMAGE", "as for 'mirror'" },
  { "base-format", OPT_BASE_FORMAT, "FORMAT", "as for 'mirror'" },
  { "trust-base", OPT_TRUST_BASE, NULL, "as for 'mirror'" },
  { "resume", OPT_RESUME, NULL, "as for 'mirror'" },
  { "restart", OPT_RESTART, NULL, "as for 'mirror'" },
  { "lease", OPT_LEASE, "TIME",
    "how long the guest's writes may wait before the hand-over is decided (default: twice "
    "max-downtime, at least 200ms)" },
  { "pidfile", OPT_PIDFILE, "FILE",
    "the file for the new server's process id (default: the socket's path with .pid)" },
  { "state", OPT_STATE, "FILE", "the new server keeps checkpoints in FILE, a new file" },
  { "json", 'j', NULL, "print a JSON object at the end" },
  CMD_OPTIONS_END,
};

bool
evacuate_parse (struct cmd_line *line, struct evacuate *e, int *status)
{
  int opt;

  line->keep_rest = true;
  while ((opt = cmd_getopt (line)) != -1) {
    *status = opt == CMD_OPT_STOP ? line->status : take_option (e, opt);
    if (opt == CMD_OPT_STOP || *status != 0)
      return false;
  }
  *status = EXIT_USAGE;
  if (!cmd_operands_ok (line, 2, 2, "CONTROL NEWDISK"))
    return false;
  const char *fault = sync_fault (&e->sync);
  e->control = line->operands[0].argv[0];
  e->disk_arg = line->operands[1].argv[0];
  if (line->operands[0].nr_args != 1 || line->operands[1].nr_args != 1)
    cmd_usage_error ("CONTROL is a control socket and NEWDISK a file or block device");
  else if (fault != NULL)
    cmd_usage_error ("%s", fault);
  else if (nbdkit_args_parse (&e->args, line->rest, line->nr_rest) == 0) {
    if (!e->args.has_filter && !e->args.has_direct && !e->args.has_uri)
      return true;
    cmd_usage_error (
        "NBDKIT-ARGS: further filters, mirror-direct= and mirror-uri= cannot be taken over");
  }
  return false;
}

char *
evacuate_resolve (const char *path)
{
  char *full = realpath (path, NULL);

  if (full == NULL)
    full = server_absolute_path ("NEWDISK", path);
  if (full != NULL) {
    json_t *text = json_string (full);
    if (text == NULL || strlen (full) > 1023) {
      cmd_say ("%s: the path must be UTF-8, and have 1023 bytes at most", full);
      free (full);
      full = NULL;
    }
    json_decref (text);
  }
  return full;
}
