/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * give-back: the command line, and what it prints.
 */

#include "config.h"

#include "base/clock.h"
#include "base/text.h"
#include "cmd/adopt/give-back.h"
#include "cmd/adopt/record.h"
#include "cmd/cmd.h"
#include "cmd/serve/paths.h"

enum { OPT_QMP = 0x100, OPT_DISCARD, OPT_AIO, OPT_KEEP_SERVER, OPT_LIBVIRT };

static const struct cmd_option options[] = {
  { "qmp", OPT_QMP, "SOCKET|libvirt:NAME", "the guest's QEMU monitor, or libvirt's guest NAME" },
  { "discard", OPT_DISCARD, "ignore|unmap",
    "how the disk is to handle the guest's TRIM (default: as adopt has recorded, else unmap)" },
  { "aio", OPT_AIO, "threads|native|io_uring",
    "how QEMU is to do the image's I/O (default: as adopt has recorded, else threads)" },
  { "keep-server", OPT_KEEP_SERVER, NULL,
    "do not end the server; it must not be used to mirror the disk any more" },
  { "libvirt", OPT_LIBVIRT, NULL,
    "go on although libvirt manages this guest and will not know of the change" },
  { "json", 'j', NULL, "print a JSON object" },
  CMD_OPTIONS_END,
};

/* False: return line->status. */
static bool
parse (struct cmd_line *line, struct give_back *g)
{
  int opt;

  while ((opt = cmd_getopt (line)) != -1)
    switch (opt) {
    case OPT_QMP:
      g->qmp = optarg;
      break;
    case OPT_DISCARD:
      g->discard = optarg;
      break;
    case OPT_AIO:
      g->aio = optarg;
      break;
    case OPT_KEEP_SERVER:
      g->keep_server = true;
      break;
    case OPT_LIBVIRT:
      g->under_libvirt = true;
      break;
    case 'j':
      g->json = true;
      break;
    default:
      return false;
    }
  if (!cmd_operands_ok (line, 1, 2, "CONTROL"))
    return false;
  line->status = EXIT_USAGE;
  if (g->qmp == NULL)
    cmd_usage_error ("--qmp is missing");
  else
    return adopt_word_ok ("--discard", g->discard, "ignore|unmap")
           && adopt_word_ok ("--aio", g->aio, "threads|native|io_uring");
  return false;
}

void
give_back_report (const struct give_back *g, const char *node)
{
  const char *device = record_text (g->record, "backend");

  if (device[0] == '\0')
    device = record_text (g->record, "device");
  if (g->json) {
    json_t *o = json_pack ("{s:s, s:s, s:s, s:f, s:f}", "device", device, "image",
                           record_text (g->record, "filename"), "node", node, "pivot-ms",
                           (double)g->took_ns / NS_PER_MS, "stopped-ms",
                           (double)g->stopped_ns / NS_PER_MS);
    json_dumpf (o, stdout, JSON_COMPACT | JSON_REAL_PRECISION (6));
    putchar ('\n');
    json_decref (o);
  } else
    cmd_say (g->stopped_ns > 0 ? "%s uses %s by itself now (the guest was stopped for %.1f ms)"
                               : "%s uses %s by itself now (%.1f ms)",
             device, record_text (g->record, "filename"),
             (double)(g->stopped_ns > 0 ? g->stopped_ns : g->took_ns) / NS_PER_MS);
}

static int
run (struct cmd_line *line)
{
  struct give_back g = { .is_receive = false };

  if (!parse (line, &g))
    return line->status;
  int status = EXIT_ERROR;
  if (line->nr_operands == 2)
    g.file = line->operands[1].argv[0];
  g.control = server_absolute_path ("CONTROL", line->operands[0].argv[0]);
  if (g.control != NULL) {
    adopt_names_make (&g.names, g.control);
    g.vm = (struct machine){ .name = "the guest's", .path = g.qmp, .journal = &g.quiet };
    status = give_back (&g);
  }
  machine_free (&g.vm);
  json_decref (g.record);
  served_free (&g.server);
  text_free (g.tracked);
  text_free (g.control);
  return status;
}

const struct subcommand subcommand_give_back = {
  "give-back",
  "--qmp SOCKET CONTROL [FILE] [OPTIONS]",
  "Take a running guest's disk off the tracked path.",
  "The guest uses its image by itself again, and the server ends.  It is not stopped if the image "
  "is\n"
  "raw.  CONTROL is the server's control socket, or the NBD socket of `nbdmirror receive`.  FILE "
  "is\n"
  "the path of the image, where the server does not tell it.\n",
  options,
  NULL,
  "A guest that was adopted gets the nodes that it had before, with their names.  If it was\n"
  "killed, run it again.\n\n"
  "Example:\n"
  "  nbdmirror give-back --qmp /run/vm1.qmp /var/lib/nbdmirror/vm1.control\n",
  run,
};
