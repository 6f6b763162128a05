/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror verify: are two endpoints equal?
 */

#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/units.h"
#include "cmd/worker.h"
#include "mirror/verify/verify.h"

enum { OPT_QUIET = 0x200 };

static const struct cmd_option options[] = {
  { "json", 'j', NULL, "print a JSON object" },
  { "quiet", OPT_QUIET, NULL, "print nothing but errors" },
  WORKER_TIMEOUT_OPTIONS,
  CMD_OPTIONS_END,
};

struct meter {
  bool show;
  unsigned last; /* percent */
};

static void
show_progress (void *opaque, uint64_t done, uint64_t size)
{
  struct meter *m = opaque;
  unsigned percent = size ? (unsigned)(100 * (double)done / (double)size) : 100;
  if (!m->show || percent == m->last)
    return;
  m->last = percent;
  fprintf (stderr, "\rverifying: %u %%\033[K", percent);
}

static void
print_json (enum verify_result result, const struct verify_report *r)
{
  json_t *o = json_pack (
      "{s:b, s:I, s:I, s:o}", "equal", result == VERIFY_EQUAL, "size", (json_int_t)r->size,
      "compared-bytes", (json_int_t)r->compared_bytes, "first-difference",
      result == VERIFY_DIFFERENT ? json_integer ((json_int_t)r->offset) : json_null ());
  json_dumpf (o, stdout, JSON_INDENT (2));
  putchar ('\n');
  json_decref (o);
}

static int
compare (struct cmd_line *line, struct verify_options *o, bool json, bool quiet)
{
  struct meter meter = { .show = !json && !quiet && isatty (2), .last = 101 };
  struct verify_report report;
  char *error, size[UNITS_BUF];

  o->a = line->operands[0].argv;
  o->nr_a = line->operands[0].nr_args;
  o->b = line->operands[1].argv;
  o->nr_b = line->operands[1].nr_args;
  if (worker_signals (&o->signal) == -1)
    return EXIT_ERROR;
  o->opaque = &meter;
  o->progress = show_progress;
  enum verify_result result = verify_run (o, &report, &error);
  if (meter.show)
    fprintf (stderr, "\r\033[K");
  if (result == VERIFY_FAILED) {
    cmd_say ("%s", error);
    text_free (error);
    return EXIT_ERROR;
  }
  if (result == VERIFY_CANCELLED)
    return EXIT_CANCELLED;
  if (json)
    print_json (result, &report);
  else if (!quiet && result == VERIFY_EQUAL)
    printf ("equal: %s (%" PRIu64 " bytes)\n", units_format_size (size, report.size), report.size);
  else if (!quiet && report.offset == report.size_b)
    printf ("different: DEST ends at offset %" PRIu64 ", SOURCE at %" PRIu64 "\n", report.offset,
            report.size);
  else if (!quiet)
    printf ("different: first at offset %" PRIu64 "\n", report.offset);
  if (result == VERIFY_EQUAL && report.size_b > report.size && !quiet)
    cmd_say ("DEST is larger: only the first %" PRIu64 " bytes were compared", report.size);
  return result == VERIFY_EQUAL ? EXIT_DONE : EXIT_DIFFERENT;
}

static int
run (struct cmd_line *line)
{
  struct worker w = { .ready_fd = -1 };
  struct worker_settings s = { 0 };
  struct verify_options o = { 0 };
  bool quiet = false;
  int c, status = 0;

  while ((c = cmd_getopt (line)) != -1) {
    if (c == CMD_OPT_STOP)
      return line->status;
    if (c == OPT_QUIET)
      quiet = true;
    else
      worker_option (c, &w, &s, &status);
    if (status)
      return status;
  }
  if (!cmd_operands_ok (line, 2, 2, "SOURCE DEST") || !cmd_place_ok (line, &line->operands[0])
      || !cmd_place_ok (line, &line->operands[1]))
    return line->status;
  o.endpoint = s.dest.endpoint;
  return compare (line, &o, w.json, quiet);
}

const struct subcommand subcommand_verify = {
  "verify",
  "SOURCE DEST [OPTIONS]",
  "Compare two disks.",
  "SOURCE is compared with DEST, byte by byte, as far as SOURCE is long.  Both are given as for "
  "copy.\n"
  "Exit status 0: equal; 5: different (the first differing offset is printed).\n",
  options,
  NULL,
  "Example:\n"
  "  nbdmirror verify disk.img nbd://hostb/\n",
  run,
};
