/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror verify: are two endpoints equal?
 */

#include "config.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/image.h"
#include "cmd/units.h"
#include "cmd/verify-meter.h"
#include "cmd/verify.h"
#include "cmd/worker.h"
#include "mirror/verify/verify.h"

enum { OPT_QUIET = 0x200, OPT_BYTES };

static const struct cmd_option options[] = {
  { "json", 'j', NULL, "print a JSON object" },
  { "bytes", OPT_BYTES, NULL, "read both disks, though their servers serve digests" },
  { "quiet", OPT_QUIET, NULL, "print nothing but errors" },
  WORKER_SOURCE_FORMAT_OPTION,
  WORKER_DEST_FORMAT_OPTION,
  WORKER_TIMEOUT_OPTIONS,
  CMD_OPTIONS_END,
};

static void
show_progress (void *opaque, uint64_t done, uint64_t size)
{
  verify_meter_show (opaque, done, size);
}

/* ---- the result ------------------------------------------------------------------------------ */

static void
print_json (enum verify_result result, const struct verify_report *r)
{
  json_t *o = json_pack (
      "{s:b, s:I, s:I, s:b, s:b, s:o}", "equal", result == VERIFY_EQUAL, "size",
      (json_int_t)r->size, "compared-bytes", (json_int_t)r->compared_bytes, "source-digests",
      r->digests_a, "dest-digests", r->digests_b, "first-difference",
      result == VERIFY_DIFFERENT ? json_integer ((json_int_t)r->offset) : json_null ());
  json_dumpf (o, stdout, JSON_INDENT (2));
  putchar ('\n');
  json_decref (o);
}

static void
print_text (enum verify_result result, const struct verify_report *r)
{
  char size[UNITS_BUF];

  if (result == VERIFY_EQUAL)
    printf ("equal: %s (%" PRIu64 " bytes)%s\n", units_format_size (size, r->size), r->size,
            r->digests_a && r->digests_b ? ", by the digests of both servers"
            : r->digests_a               ? ", by the digests of SOURCE's server"
            : r->digests_b               ? ", by the digests of DEST's server"
                                         : "");
  else if (r->offset == r->size_b)
    printf ("different: DEST ends at offset %" PRIu64 ", SOURCE at %" PRIu64 "\n", r->offset,
            r->size);
  else
    printf ("different: first at offset %" PRIu64 "\n", r->offset);
  if (result == VERIFY_EQUAL && r->size_b > r->size)
    cmd_say ("DEST is larger: only the first %" PRIu64 " bytes were compared", r->size);
}

static int
compare (struct cmd_line *line, struct verify_options *o, bool json, bool quiet)
{
  struct verify_meter meter;
  struct verify_report report;
  char *error;

  o->a = line->operands[0].argv;
  o->nr_a = line->operands[0].nr_args;
  o->b = line->operands[1].argv;
  o->nr_b = line->operands[1].nr_args;
  if (worker_signals (&o->signal) == -1)
    return EXIT_ERROR;
  o->opaque = &meter;
  o->progress = show_progress;
  verify_meter_begin (&meter, !json && !quiet);
  enum verify_result result = verify_run (o, &report, &error);
  verify_meter_end (&meter);
  if (result == VERIFY_FAILED) {
    cmd_say ("%s", error);
    text_free (error);
    return EXIT_ERROR;
  }
  if (result == VERIFY_CANCELLED)
    return EXIT_CANCELLED;
  if (json)
    print_json (result, &report);
  else if (!quiet)
    print_text (result, &report);
  return result == VERIFY_EQUAL ? EXIT_DONE : EXIT_DIFFERENT;
}

static int
run (struct cmd_line *line)
{
  struct worker w = { .ready_fd = -1 };
  struct worker_settings s = { 0 };
  struct verify_options o = { 0 };
  struct image source_image, dest_image;
  bool quiet = false;
  int c, status = 0;

  while ((c = cmd_getopt (line)) != -1) {
    if (c == CMD_OPT_STOP)
      return line->status;
    if (c == OPT_QUIET)
      quiet = true;
    else if (c == OPT_BYTES)
      o.bytes = true;
    else
      worker_option (c, &w, &s, &status);
    if (status)
      return status;
  }
  if (!cmd_operands_ok (line, 1, 2, "SOURCE|CONTROL"))
    return line->status;
  if (line->nr_operands == 1) {
    if (line->operands[0].nr_args != 1)
      return cmd_usage_error ("CONTROL is the path of a control socket");
    return verify_live (line->operands[0].argv[0], w.json, quiet);
  }
  if (!cmd_place_ok (line, &line->operands[0]) || !cmd_place_ok (line, &line->operands[1])
      || !image_place (line, &line->operands[0], "--source-format", s.source_format, false,
                       &source_image)
      || !image_place (line, &line->operands[1], "--dest-format", s.dest_format, false,
                       &dest_image))
    return line->status;
  o.endpoint = s.dest.endpoint;
  return compare (line, &o, w.json, quiet);
}

const struct subcommand subcommand_verify = {
  "verify",
  "SOURCE DEST | CONTROL [OPTIONS]",
  "Compare two disks, or a disk with its live copy.",
  "SOURCE is compared with DEST, as far as SOURCE is long.  Both are given as for copy.  Where a\n"
  "server serves digests (nbdkit-digest-filter, nbdmirror receive), they are compared.\n"
  "With CONTROL the copy of a live job that is ready is verified while the guest writes.\n"
  "Exit status 0: equal; 5: different (the first differing offset is printed).\n",
  options,
  NULL,
  "Examples:\n"
  "  nbdmirror verify disk.img nbd://hostb/\n"
  "  nbdmirror verify /var/lib/nbdmirror/vm1.control\n",
  run,
};
