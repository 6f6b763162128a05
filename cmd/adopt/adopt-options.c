/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * adopt: the command line.
 */

#include "config.h"

#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "cmd/adopt/adopt.h"
#include "cmd/cmd.h"
#include "cmd/serve/paths.h"
#include "cmd/units.h"

#define RECONNECT_S 60
#define RECONNECT_MAX_MS (UINT64_C (24) * 3600 * 1000)

enum {
  OPT_QMP = 0x100,
  OPT_NODE,
  OPT_DEVICE,
  OPT_SOCKET,
  OPT_CONTROL,
  OPT_DISCARD,
  OPT_AIO,
  OPT_RECONNECT,
  OPT_STATE,
  OPT_LIBVIRT
};

static const struct cmd_option options[] = {
  { "qmp", OPT_QMP, "SOCKET|libvirt:NAME", "the guest's QEMU monitor, or libvirt's guest NAME" },
  { "device", OPT_DEVICE, "ID", "the guest's disk: the id of its device, or of its -drive" },
  { "node", OPT_NODE, "NODE", "the same, by the name of the block node that it uses" },
  { "socket", OPT_SOCKET, "PATH", "the Unix socket on which the disk will be served" },
  { "control", OPT_CONTROL, "PATH", "the control socket, for the other subcommands" },
  { "state", OPT_STATE, "FILE",
    "keep checkpoints in FILE, as 'serve' does; what was recorded before counts no more" },
  { "discard", OPT_DISCARD, "ignore|unmap",
    "how the disk handles the guest's TRIM now, which QEMU does not tell (default ignore, as "
    "QEMU's)" },
  { "aio", OPT_AIO, "threads|native|io_uring",
    "how QEMU does the image's I/O now, for give-back (default threads, as QEMU's)" },
  { "reconnect-delay", OPT_RECONNECT, "TIME",
    "how long the guest waits for a server that is restarted (default 60s)" },
  { "libvirt", OPT_LIBVIRT, NULL,
    "go on although libvirt manages this guest and will not know of the change" },
  { "json", 'j', NULL, "print a JSON object" },
  CMD_OPTIONS_END,
};

/* False: return line->status. */
static bool
read_option (struct cmd_line *line, struct adopt *a, int opt)
{
  const char *problem;
  uint64_t ms;

  switch (opt) {
  case OPT_QMP:
    a->qmp = optarg;
    break;
  case OPT_NODE:
    a->choice.node = optarg;
    break;
  case OPT_DEVICE:
    a->choice.device = optarg;
    break;
  case OPT_SOCKET:
    a->socket_arg = optarg;
    break;
  case OPT_CONTROL:
    a->control_arg = optarg;
    break;
  case OPT_STATE:
    a->state_arg = optarg;
    break;
  case OPT_DISCARD:
    a->discard = optarg;
    break;
  case OPT_AIO:
    a->aio = optarg;
    break;
  case OPT_RECONNECT:
    problem = units_parse_time (optarg, &ms);
    if (problem == NULL && ms > RECONNECT_MAX_MS)
      problem = "more than a day";
    if (problem != NULL) {
      line->status = cmd_usage_error ("--reconnect-delay '%s': %s", optarg, problem);
      return false;
    }
    a->reconnect_s = (unsigned)((ms + MS_PER_S - 1) / MS_PER_S);
    break;
  case OPT_LIBVIRT:
    a->under_libvirt = true;
    break;
  case 'j':
    a->json = true;
    break;
  default:
    return false;
  }
  return true;
}

/* False: return line->status. */
static bool
parse (struct cmd_line *line, struct adopt *a)
{
  int opt;

  line->keep_rest = true;
  while ((opt = cmd_getopt (line)) != -1)
    if (!read_option (line, a, opt))
      return false;
  line->status = EXIT_USAGE;
  a->nbdkit_args = line->rest;
  a->nr_nbdkit_args = line->nr_rest;
  if (line->nr_operands > 0)
    cmd_usage_error ("'%s' is no option of adopt", line->operands[0].argv[0]);
  else if (a->qmp == NULL)
    cmd_usage_error ("--qmp is missing");
  else if (a->socket_arg == NULL)
    cmd_usage_error ("--socket is missing");
  else if (a->control_arg == NULL)
    cmd_usage_error ("--control is missing");
  else if (a->choice.node != NULL && a->choice.device != NULL)
    cmd_usage_error ("--node and --device name the same thing: give one of them");
  else
    return adopt_word_ok ("--discard", a->discard, "ignore|unmap")
           && adopt_word_ok ("--aio", a->aio, "threads|native|io_uring");
  return false;
}

static int
run (struct cmd_line *line)
{
  struct adopt a = { .discard = "ignore", .aio = "threads", .reconnect_s = RECONNECT_S };

  if (!parse (line, &a))
    return line->status;
  int status = EXIT_ERROR;
  a.socket = server_absolute_path ("--socket", a.socket_arg);
  if (a.socket != NULL && (a.control = server_absolute_path ("--control", a.control_arg)) != NULL
      && (a.state_arg == NULL
          || (a.state = server_absolute_path ("--state", a.state_arg)) != NULL)) {
    adopt_names_make (&a.names, a.control);
    a.vm = (struct machine){ .name = "the guest's", .path = a.qmp, .journal = &a.quiet };
    status = adopt_disk (&a);
  }
  machine_free (&a.vm);
  json_decref (a.record);
  text_free (a.socket);
  text_free (a.control);
  text_free (a.state);
  return status;
}

const struct subcommand subcommand_adopt = {
  "adopt",
  "--qmp SOCKET --socket PATH --control PATH [OPTIONS] [-- NBDKIT-ARGS]",
  "Put a running guest's disk onto the tracked path.",
  "The guest's raw image is served by `nbdmirror serve`, and QEMU uses that server from then on,\n"
  "without a stop of the guest.  Then it can be mirrored and migrated as any other disk.\n"
  "`nbdmirror give-back` is the way back.\n",
  options,
  NULL,
  "What fails before the guest has moved leaves everything as it was.  If it was killed, run it\n"
  "again with the same arguments, or run give-back.\n\n"
  "Example:\n"
  "  nbdmirror adopt --qmp /run/vm1.qmp --socket /run/vm1.nbd \\\n"
  "            --control /var/lib/nbdmirror/vm1.control\n",
  run,
};
