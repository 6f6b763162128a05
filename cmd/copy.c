/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror copy: copy between any two endpoints, offline; or from or to a stream.
 */

#include "config.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/text.h"
#include "budget/budget.h"
#include "cmd/cmd.h"
#include "cmd/control-query.h"
#include "cmd/image.h"
#include "cmd/show-progress.h"
#include "cmd/units.h"
#include "cmd/worker.h"
#include "mirror/endpoint/null.h"
#include "mirror/job/copy.h"
#include "mirror/job/stream.h"

enum {
  OPT_NO_PROGRESS = 0x200,
  OPT_FLUSH,
  OPT_DEST_IS_ZERO,
  OPT_ALLOCATED,
  OPT_REQUEST_SIZE,
  OPT_QUEUE_SIZE,
  OPT_SYNCHRONOUS,
  OPT_NO_EXTENTS,
  OPT_BLKHASH,
  OPT_STATE
};

static const struct cmd_option options[] = {
  { "progress", 'p', NULL,
    "print the progress on standard error, which is the default: a line that redraws on a "
    "terminal, "
    "else a line every few seconds" },
  { "no-progress", OPT_NO_PROGRESS, NULL, "print no progress" },
  { "give-up-after", WORKER_OPT_GIVE_UP, "TIME",
    "how long to try to reach a destination that was lost, or to read a source that fails (default "
    "0: not at all; never: without end)" },
  { "destination-is-zero", OPT_DEST_IS_ZERO, NULL,
    "the destination reads as zero all over: do not write zeroes that may be holes" },
  { "target-is-zero", OPT_DEST_IS_ZERO, NULL, NULL },
  { "allocated", OPT_ALLOCATED, NULL, "the same as --sparse never" },
  { "state", OPT_STATE, "FILE",
    "for --sync incremental: the state file of the server that served SOURCE, and is stopped" },
  WORKER_SOURCE_FORMAT_OPTION,
  WORKER_DEST_FORMAT_OPTION,
  WORKER_OPTIONS,
  { "connections", 'C', "N", "" },
  { "flush", OPT_FLUSH, NULL, "" },
  { "verbose", 'v', NULL, "" },
  { "requests", 'R', "N", "" },
  { "S", 'S', "N", "" },
  { "threads", 'T', "N", "" },
  { "request-size", OPT_REQUEST_SIZE, "N", "" },
  { "queue-size", OPT_QUEUE_SIZE, "N", "" },
  { "synchronous", OPT_SYNCHRONOUS, NULL, "" },
  { "no-extents", OPT_NO_EXTENTS, NULL, "" },
  { "blkhash", OPT_BLKHASH, NULL, "" },
  CMD_OPTIONS_END,
};

/* What nbdcopy has and we have not.  EXIT_USAGE, after what to do instead. */
static int
refuse_habit (int c)
{
  static const struct {
    int key;
    const char *option, *advice;
  } habits[] = {
    { 'v', "-v", "there is nothing more to tell; --report FILE says what was done" },
    { 'R', "--requests", "the number of requests in flight is found by measuring" },
    { 'S', "-S", "zeroes are looked for in pieces of 4 KiB; --sparse says what becomes of them" },
    { 'T', "--threads", "there is one thread for each connection: give --connections" },
    { OPT_REQUEST_SIZE, "--request-size", "requests have 256 KiB, as nbdcopy's have by default" },
    { OPT_QUEUE_SIZE, "--queue-size", "all buffers together have 96 MiB at most" },
    { OPT_SYNCHRONOUS, "--synchronous", "use --bandwidth to go easy on a slow server" },
    { OPT_NO_EXTENTS, "--no-extents",
      "block status is believed only where it says that a range reads as zero; leave it out" },
    { OPT_BLKHASH, "--blkhash", "'nbdmirror verify' compares two disks" },
  };

  for (size_t i = 0; i < sizeof habits / sizeof habits[0]; i++)
    if (habits[i].key == c)
      return cmd_usage_error ("%s: not an option of nbdmirror: %s", habits[i].option,
                              habits[i].advice);
  return EXIT_USAGE;
}

struct arguments {
  struct worker worker;
  struct worker_settings settings;
  struct copy_options copy;
  bool no_progress, dest_is_zero;
  struct image source_image, dest_image;
};

/* 0, or EXIT_USAGE. */
static int
take_option (struct arguments *a, int c)
{
  int status = 0;

  switch (c) {
  case 'p':
    a->no_progress = false;
    return 0;
  case OPT_NO_PROGRESS:
    a->no_progress = true;
    return 0;
  case OPT_DEST_IS_ZERO:
    a->dest_is_zero = true;
    return 0;
  case OPT_ALLOCATED:
    a->settings.sparse = ENGINE_SPARSE_NEVER;
    return 0;
  case OPT_STATE:
    a->settings.sync.state = optarg;
    return 0;
  case OPT_FLUSH: /* nbdcopy's: always done here */
    return 0;
  case 'C':
    c = WORKER_OPT_CONNECTIONS;
    break;
  default:
    break;
  }
  return worker_option (c, &a->worker, &a->settings, &status) ? status : refuse_habit (c);
}

static bool
is_word (const struct cmd_operand *op, const char *word)
{
  return op->nr_args == 1 && strcmp (op->argv[0], word) == 0;
}

/* Are SOURCE and DEST what they can be?  An image becomes the command that serves it.  0, or an
 * exit status. */
static int
check_places (struct cmd_line *line, struct arguments *a)
{
  struct cmd_operand *source = &line->operands[0], *dest = &line->operands[1];
  bool from_stream = is_word (source, STREAM_NAME), to_stream = is_word (dest, STREAM_NAME);

  if (is_word (source, ENDPOINT_NULL))
    return cmd_usage_error ("%s holds nothing that could be copied: it is for DEST", ENDPOINT_NULL);
  if (from_stream && to_stream)
    return cmd_usage_error ("one of SOURCE and DEST can be '-', not both");
  if (to_stream && a->worker.json)
    return cmd_usage_error ("--json prints on standard output, where the data goes: give --report");
  if (to_stream && isatty (STDOUT_FILENO))
    return cmd_usage_error ("DEST is '-', and standard output is a terminal");
  if ((from_stream || to_stream) && a->settings.give_up_ns != 0)
    return cmd_usage_error ("--give-up-after: a stream cannot be read or written twice");
  if ((from_stream || to_stream) && a->settings.sync.mode != ENGINE_SYNC_FULL)
    return cmd_usage_error ("--sync: all of a stream is copied");
  if (from_stream && a->settings.source_format != NULL)
    return cmd_usage_error ("--source-format: a stream is a raw disk");
  if (to_stream && a->settings.dest_format != NULL)
    return cmd_usage_error ("--dest-format: a stream is a raw disk");
  if (!from_stream
      && (!cmd_place_ok (line, source)
          || !image_place (line, source, "--source-format", a->settings.source_format, false,
                           &a->source_image)))
    return line->status;
  if (!to_stream && !is_word (dest, ENDPOINT_NULL)
      && (!cmd_place_ok (line, dest)
          || !image_place (line, dest, "--dest-format", a->settings.dest_format, true,
                           &a->dest_image)))
    return line->status;
  if (from_stream && a->dest_image.path[0] != '\0' && access (a->dest_image.path, F_OK) == -1) {
    cmd_say ("%s: make it first, with 'qemu-img create': a stream does not tell its length",
             dest->argv[0]);
    return EXIT_ERROR;
  }
  return 0;
}

/* --sync top of an image that names its base itself: that one is to be proved. */
static int
find_base (struct arguments *a, char **base, char **base_format)
{
  struct sync_options *sync = &a->settings.sync;

  if (sync->mode != ENGINE_SYNC_TOP || sync->base != NULL || a->source_image.path[0] == '\0')
    return 0;
  int status = image_base (a->source_image.path, a->settings.source_format, base, base_format);
  sync->base = *base;
  sync->base_format = *base_format;
  sync->base_is_known = true;
  return status;
}

static enum job_result
copy (struct arguments *a, json_t **report)
{
  const struct copy_options *o = &a->copy;

  if (o->nr_source == 1 && strcmp (o->source[0], STREAM_NAME) == 0)
    return stream_run (o, STDIN_FILENO, false, report);
  if (o->dest.nr_dest == 1 && strcmp (o->dest.dest[0], STREAM_NAME) == 0)
    return stream_run (o, STDOUT_FILENO, true, report);
  return copy_run (o, report);
}

/* The last line.  Errors were told already. */
static void
say_end (struct arguments *a, enum job_result result, const json_t *report)
{
  char size[UNITS_BUF], sent[UNITS_BUF], took[UNITS_BUF];

  if (a->worker.progress)
    progress_break (a->worker.progress);
  if (result == JOB_COMPLETED && report)
    cmd_say ("copied: %s in %s, %s of it sent as data",
             units_format_size (size, (uint64_t)status_number (report, "size", 0)),
             units_format_time (took, 1000 * status_number (report, "total-s", 0)),
             units_format_size (sent, (uint64_t)status_number (report, "sent-bytes", 0)));
  else if (result == JOB_CANCELLED)
    cmd_say ("stopped: the destination is incomplete");
}

static int
run (struct cmd_line *line)
{
  struct arguments a = { .worker = { .ready_fd = -1 }, .settings = { .give_up_ns = 0 } };
  struct copy_options *o = &a.copy;
  json_t *report;
  int c;

  while ((c = cmd_getopt (line)) != -1) {
    int status = c == CMD_OPT_STOP ? line->status : take_option (&a, c);
    if (c == CMD_OPT_STOP || status != 0)
      return status;
  }
  if (!cmd_operands_ok (line, 2, 2, "SOURCE DEST"))
    return line->status;
  int status = check_places (line, &a);
  if (status != 0)
    return status;
  CLEANUP_TEXT char *base = NULL, *base_format = NULL;
  status = find_base (&a, &base, &base_format);
  if (status != 0)
    return status;
  if (worker_check_sync (&a.settings.sync) != 0)
    return EXIT_USAGE;
  const struct sync_options *sync = &a.settings.sync;
  if (sync->mode == ENGINE_SYNC_INCREMENTAL && (sync->since == NULL || sync->state == NULL))
    return cmd_usage_error ("--sync incremental needs --since NAME and --state FILE; of a disk that"
                            " is served, 'nbdmirror mirror' sends what was changed");
  *o = (struct copy_options){ .source = line->operands[0].argv,
                              .nr_source = line->operands[0].nr_args,
                              .dest = a.settings.dest,
                              .sync = a.settings.sync,
                              .sparse = a.settings.sparse,
                              .dest_is_zero = a.dest_is_zero,
                              .rate_limit = a.settings.rate_limit,
                              .max_connections = a.settings.max_connections,
                              .give_up_ns = a.settings.give_up_ns,
                              .opaque = &a.worker,
                              .message = worker_message,
                              .progress = worker_progress };
  image_to_create (&a.dest_image, a.settings.dest_format, &o->dest.endpoint);
  o->dest.dest = line->operands[1].argv;
  o->dest.nr_dest = line->operands[1].nr_args;
  o->signal_fd = worker_signals (&o->signal);
  if (o->signal_fd == -1)
    return EXIT_ERROR;
  if (!worker_join_budget (&a.settings, o->dest.dest[0], &o->budget))
    return EXIT_ERROR;
  if (!a.worker.json && !a.no_progress)
    a.worker.progress = progress_new (stderr, NULL);
  enum job_result result = copy (&a, &report);
  budget_leave (o->budget);
  if (!a.worker.json)
    say_end (&a, result, report);
  return worker_finish (&a.worker, result, report);
}

const struct subcommand subcommand_copy = {
  "copy",
  "SOURCE DEST [OPTIONS]",
  "Copy a disk that is not in use.",
  "SOURCE is copied to DEST; nobody may write to SOURCE meanwhile.  Each is an NBD URI, a local\n"
  "file or block device, ssh://HOST/PATH, [ COMMAND ARGS ] that serves NBD, or - for standard\n"
  "input or output.  DEST may also be null:, which forgets what it is given.  A local DEST file\n"
  "is created or extended, never truncated.  Exit status 0 means that DEST has flushed\n"
  "everything.\n",
  options,
  NULL,
  "Examples:\n"
  "  nbdmirror copy disk.img nbd://hostb/\n"
  "  nbdmirror copy 'nbd+unix:///?socket=/tmp/sock' backup.img --bandwidth 50M\n"
  "  nbdmirror copy disk.img [ qemu-nbd -f qcow2 disk.qcow2 ]\n"
  "  nbdmirror copy nbd://hostb/ - | gzip >disk.gz\n",
  run,
};
