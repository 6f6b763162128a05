/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror copy: copy between any two endpoints, offline.
 */

#include "config.h"

#include <stdio.h>

#include "cmd/cmd.h"
#include "cmd/show-progress.h"
#include "cmd/units.h"
#include "cmd/worker.h"
#include "mirror/job/copy.h"

static const struct cmd_option options[] = {
  { "give-up-after", WORKER_OPT_GIVE_UP, "TIME",
    "how long to try to reach a destination that was lost, or to read a source that fails (default "
    "0: not at all; never: without end)" },
  WORKER_OPTIONS,
  CMD_OPTIONS_END,
};

static int
run (struct cmd_line *line)
{
  struct worker w = { .ready_fd = -1 };
  struct worker_settings s = { .give_up_ns = 0 };
  struct copy_options o = { 0 };
  json_t *report;
  int c, status = 0;

  while ((c = cmd_getopt (line)) != -1) {
    if (c == CMD_OPT_STOP)
      return line->status;
    worker_option (c, &w, &s, &status);
    if (status)
      return status;
  }
  if (!cmd_operands_ok (line, 2, 2, "SOURCE DEST") || !cmd_place_ok (line, &line->operands[0])
      || !cmd_place_ok (line, &line->operands[1]))
    return line->status;
  o.source = line->operands[0].argv;
  o.nr_source = line->operands[0].nr_args;
  if (worker_check_sync (&s.sync) != 0)
    return EXIT_USAGE;
  o.sync = s.sync;
  o.dest = s.dest;
  o.dest.dest = line->operands[1].argv;
  o.dest.nr_dest = line->operands[1].nr_args;
  o.rate_limit = s.rate_limit;
  o.nr_copiers = s.nr_copiers;
  o.give_up_ns = s.give_up_ns;
  o.opaque = &w;
  o.message = worker_message;
  o.progress = worker_progress;
  o.signal_fd = worker_signals (&o.signal);
  if (o.signal_fd == -1)
    return EXIT_ERROR;
  if (!w.json)
    w.progress = progress_new (stderr, NULL);
  enum job_result result = copy_run (&o, &report);
  if (result == JOB_COMPLETED && report && !w.json) {
    char size[UNITS_BUF], sent[UNITS_BUF], took[UNITS_BUF];
    if (w.progress)
      progress_break (w.progress);
    cmd_say (
        "copied: %s in %s, %s of it sent as data",
        units_format_size (size, (uint64_t)json_integer_value (json_object_get (report, "size"))),
        units_format_time (took, 1000 * json_number_value (json_object_get (report, "total-s"))),
        units_format_size (sent,
                           (uint64_t)json_integer_value (json_object_get (report, "sent-bytes"))));
  }
  if (result == JOB_CANCELLED && !w.json) {
    if (w.progress)
      progress_break (w.progress);
    cmd_say ("stopped: the destination is incomplete");
  }
  return worker_finish (&w, result, report);
}

const struct subcommand subcommand_copy = {
  "copy",
  "SOURCE DEST [OPTIONS]",
  "Copy a disk that is not in use.",
  "SOURCE is copied to DEST; nobody may write to SOURCE meanwhile.  Each is an NBD URI, a local "
  "file or\n"
  "block device, or [ COMMAND ARGS ] that serves NBD.  A local DEST file is created or extended, "
  "never\n"
  "truncated.  Exit status 0 means that DEST has flushed everything.\n",
  options,
  NULL,
  "Examples:\n"
  "  nbdmirror copy disk.img nbd://hostb/\n"
  "  nbdmirror copy 'nbd+unix:///?socket=/tmp/sock' backup.img --bandwidth 50M\n"
  "  nbdmirror copy disk.img [ qemu-nbd -f qcow2 disk.qcow2 ]\n",
  run,
};
