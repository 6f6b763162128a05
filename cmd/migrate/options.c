/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See options.h.
 */

#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "cmd/control-query.h"
#include "cmd/migrate/libvirt-monitor.h"
#include "cmd/migrate/options.h"
#include "cmd/serve/paths.h"
#include "cmd/units.h"
#include "cmd/worker.h"
#include "control/name.h"
#include "mirror/endpoint/uri.h"

#define ADOPT_FOLDER "/var/lib/nbdmirror"
#define SWITCH_MS 30000
#define MAX_DOWNTIME_MS 300

enum {
  OPT_SOURCE_QMP = 0x100,
  OPT_DEST_QMP,
  OPT_MEMORY_URI,
  OPT_INCOMING_URI,
  OPT_DISK,
  OPT_BANDWIDTH,
  OPT_CONNECTIONS,
  OPT_MAX_DOWNTIME,
  OPT_MEMORY_BANDWIDTH,
  OPT_TIMEOUT,
  OPT_STALLED,
  OPT_SWITCH,
  OPT_POLICY,
  OPT_LOG,
  OPT_REPORT,
  OPT_RESUME,
  OPT_KEEP,
  OPT_QUIT,
  OPT_AUTO_CONVERGE,
  OPT_NO_DISK_CHECK,
  OPT_RECOVER,
  OPT_DRY_RUN,
  OPT_MEASURE,
  OPT_COMPRESS,
  OPT_BUDGET,
  OPT_ADOPT,
  OPT_GIVE_BACK
};

/* Room for one disk more. */
static bool
make_room (struct migrate_options *o)
{
  char **controls = realloc (o->controls, (o->nr_disks + 1) * sizeof *controls);
  if (controls != NULL)
    o->controls = controls;
  struct disk_option *disks = realloc (o->disks, (o->nr_disks + 1) * sizeof *disks);
  if (disks != NULL)
    o->disks = disks;
  return controls != NULL && disks != NULL;
}

static int
add_disk (struct migrate_options *o, const char *text)
{
  if (!make_room (o)) {
    cmd_say ("out of memory");
    return EXIT_ERROR;
  }
  struct disk_option *d = &o->disks[o->nr_disks];
  CLEANUP_TEXT char *why = disk_option_parse (text, d);
  o->controls[o->nr_disks++] = d->control;
  if (why != NULL)
    return cmd_usage_error ("--disk %s: %s", text, why);
  for (const struct disk_option *other = o->disks; other < d; other++)
    if (strcmp (other->control, d->control) == 0 || strcmp (other->dest, d->dest) == 0)
      return cmd_usage_error ("--disk %s: its %s is given twice", text,
                              strcmp (other->control, d->control) == 0 ? "CONTROL" : "DEST");
  return 0;
}

static int
take_time (const char *option, uint64_t *ms)
{
  if (!worker_parse_ms (option, optarg, ms))
    return EXIT_USAGE;
  if (*ms < 1 || *ms > 24 * 3600 * 1000)
    return cmd_usage_error ("%s %s: must be between 1ms and 24h", option, optarg);
  return 0;
}

static int
take_rate (const char *option, uint64_t *rate)
{
  const char *why = units_parse_rate (optarg, rate);

  return why != NULL ? cmd_usage_error ("%s %s: %s", option, optarg, why) : 0;
}

static int
take_compress (struct migrate_options *o)
{
  int level;

  if (!worker_parse_level (optarg, &level))
    return EXIT_USAGE;
  snprintf (o->compress, sizeof o->compress, "--compress=%d", level);
  return 0;
}

/* True: C is an option without an argument, and it was taken. */
static bool
take_flag (struct migrate_options *o, int c)
{
  switch (c) {
  case OPT_RESUME:
    o->resume = true;
    return true;
  case OPT_KEEP:
    o->keep_mirrors = true;
    return true;
  case OPT_QUIT:
    o->quit_source = true;
    return true;
  case OPT_AUTO_CONVERGE:
    o->auto_converge = true;
    return true;
  case OPT_NO_DISK_CHECK:
    o->no_disk_check = true;
    return true;
  case OPT_RECOVER:
    o->recover = true;
    return true;
  case OPT_DRY_RUN:
    o->dry_run = true;
    return true;
  case OPT_GIVE_BACK:
    o->give_back = true;
    return true;
  case 'j':
    o->json = true;
    return true;
  default:
    return false;
  }
}

/* 0, or an exit status. */
static int
take_option (struct migrate_options *o, int c)
{
  enum job_policy policy;
  uint64_t ignored;

  switch (c) {
  case OPT_SOURCE_QMP:
    o->source_qmp = optarg;
    return 0;
  case OPT_DEST_QMP:
    o->dest_qmp = optarg;
    return 0;
  case OPT_MEMORY_URI:
    o->memory_uri = optarg;
    return 0;
  case OPT_INCOMING_URI:
    o->incoming_uri = optarg;
    return 0;
  case OPT_DISK:
    return add_disk (o, optarg);
  case OPT_BANDWIDTH:
    o->bandwidth = optarg;
    return take_rate ("--bandwidth", &ignored);
  case OPT_BUDGET:
    o->budget = optarg;
    return 0;
  case OPT_COMPRESS:
    return take_compress (o);
  case OPT_CONNECTIONS:
    o->connections = optarg;
    return 0;
  case OPT_MAX_DOWNTIME:
    o->max_downtime = optarg;
    return take_time ("--max-downtime", &o->max_downtime_ms);
  case OPT_MEMORY_BANDWIDTH:
    return take_rate ("--memory-bandwidth", &o->memory_bandwidth);
  case OPT_TIMEOUT:
    return take_time ("--timeout", &o->timeout_ms);
  case OPT_STALLED:
    o->give_up_stalled = optarg;
    return take_time ("--give-up-if-stalled", &o->give_up_stalled_ms);
  case OPT_SWITCH:
    return take_time ("--switchover-timeout", &o->switch_ms);
  case OPT_POLICY:
    o->policy = optarg;
    return job_policy_parse (optarg, &policy)
               ? 0
               : cmd_usage_error ("--policy %s: must be sync, throttle, none or fail", optarg);
  case OPT_MEASURE:
    o->measure = optarg;
    return take_time ("--measure", &ignored);
  case OPT_ADOPT:
    text_free (o->adopt);
    o->adopt = server_absolute_path ("--adopt", optarg != NULL ? optarg : ADOPT_FOLDER);
    return o->adopt != NULL ? 0 : EXIT_ERROR;
  case OPT_LOG:
    o->log = optarg;
    return 0;
  case OPT_REPORT:
    o->report = optarg;
    return report_possible ("--report", optarg) ? 0 : EXIT_ERROR;
  default:
    return take_flag (o, c) || hook_option (&o->hooks, c) ? 0 : EXIT_USAGE;
  }
}

static int
check_options (const struct migrate_options *o)
{
  if (o->source_qmp == NULL || o->dest_qmp == NULL)
    return cmd_usage_error ("%s is missing", o->source_qmp == NULL ? "--source-qmp" : "--dest-qmp");
  if (libvirt_is_meant (o->source_qmp) || libvirt_is_meant (o->dest_qmp))
    return cmd_usage_error ("%s: migrate needs the monitor itself; see nbdmirror(1), WITH LIBVIRT",
                            libvirt_is_meant (o->source_qmp) ? o->source_qmp : o->dest_qmp);
  if (strcmp (o->source_qmp, o->dest_qmp) == 0)
    return cmd_usage_error ("--source-qmp and --dest-qmp are the same socket, %s", o->dest_qmp);
  if (o->nr_disks == 0)
    return cmd_usage_error ("--disk CONTROL=DEST is missing, once for each disk of the guest");
  if (o->measure != NULL && !o->dry_run)
    return cmd_usage_error ("--measure goes with --dry-run");
  if (o->dry_run && o->recover)
    return cmd_usage_error ("--dry-run and --recover exclude each other");
  if (o->memory_uri == NULL && !o->recover)
    return cmd_usage_error ("--memory-uri is missing");
  if (o->dry_run && o->adopt != NULL)
    return cmd_usage_error ("--dry-run and --adopt exclude each other: nothing may be adopted");
  return 0;
}

/* With --adopt a disk is named by its device, and its control socket by that. */
static int
name_disk (struct migrate_options *o, unsigned i)
{
  struct disk_option *d = &o->disks[i];

  if (d->control[0] == '.' || strchr (d->control, '/') != NULL)
    return cmd_usage_error ("--disk %s=%s: with --adopt this begins with the id of a device, or of "
                            "its -drive or node",
                            d->control, d->dest);
  d->name = d->control;
  o->controls[i] = d->control = text_printf ("%s/%s.control", o->adopt, d->name);
  return 0;
}

/* What a disk that QEMU has open by itself cannot have. */
static int
check_own_disk_options (const struct migrate_options *o, const struct disk_option *d)
{
  CLEANUP_TEXT char *monitor = NULL;
  const char *node;
  const char *not_had = o->dry_run                   ? "--dry-run"
                        : d->verify                  ? ",verify=on"
                        : o->give_up_stalled != NULL ? "--give-up-if-stalled"
                                                     : NULL;

  if (!control_is_of_qemu (d->control))
    return 0;
  if (!control_name_split (d->control, &monitor, &node))
    return cmd_usage_error ("--disk %s=%s: it begins with qmp:SOCKET/NODE, the path of a monitor "
                            "socket and the name of a node",
                            d->control, d->dest);
  return not_had == NULL
             ? 0
             : cmd_usage_error ("--disk %s=%s: %s is not for a disk that QEMU has open by itself",
                                d->control, d->dest, not_had);
}

/* What --adopt and --give-back need of disk I. */
static int
check_path_options (struct migrate_options *o, unsigned i)
{
  const struct disk_option *d = &o->disks[i];
  const char *name = d->control;

  if (o->give_back && d->image == NULL)
    return cmd_usage_error ("--disk %s=%s: --give-back needs its ,image=FILE", name, d->dest);
  if (!o->give_back && d->image != NULL)
    return cmd_usage_error ("--disk %s=%s: ,image=FILE goes with --give-back", name, d->dest);
  if (!o->give_back && o->adopt == NULL && (d->discard != NULL || d->aio != NULL))
    return cmd_usage_error ("--disk %s=%s: ,discard and ,aio go with --adopt or --give-back", name,
                            d->dest);
  if (o->give_back) {
    struct uri *uri = uri_read (d->dest, NULL);
    bool local = uri != NULL && uri_parameter (uri, "socket") != NULL;
    uri_free (uri);
    if (!local)
      return cmd_usage_error ("--disk %s=%s: --give-back needs a destination at a Unix socket of "
                              "this host",
                              name, d->dest);
  }
  return o->adopt != NULL ? name_disk (o, i) : 0;
}

const struct cmd_option migrate_option_table[] = {
  { "source-qmp", OPT_SOURCE_QMP, "SOCK", "the source QEMU's QMP socket" },
  { "dest-qmp", OPT_DEST_QMP, "SOCK", "the destination QEMU's QMP socket" },
  { "memory-uri", OPT_MEMORY_URI, "URI",
    "where the source sends the memory: tcp:HOST:PORT, unix:PATH" },
  { "incoming-uri", OPT_INCOMING_URI, "URI",
    "where the destination listens for the memory, if that is another place" },
  { "disk", OPT_DISK, "CONTROL=DEST", "a disk of the guest and where it goes; once for each disk" },
  DISK_OPTION_PARTS,
  { "adopt", OPT_ADOPT, "[DIR]",
    "the guest was started without a server: CONTROL is the id of a device, or of its -drive or "
    "node, and is put onto the tracked path for the move (sockets in DIR, default " ADOPT_FOLDER
    ")" },
  { "give-back", OPT_GIVE_BACK, NULL,
    "in the end the guest uses its images at the destination by itself; needs ,image=FILE" },
  { "max-downtime", OPT_MAX_DOWNTIME, "TIME",
    "the pause to aim at, of the disks and of the memory (default 300ms)" },
  { "bandwidth", OPT_BANDWIDTH, "RATE",
    "the limit of each disk's mirror (k, M, G; bytes a second)" },
  { "budget", OPT_BUDGET, "NAME[:WEIGHT]", "a budget for the mirrors, as for 'mirror'" },
  { "compress", OPT_COMPRESS, "[LEVEL]", "compress what the mirrors send, as for 'mirror'" },
  { "memory-bandwidth", OPT_MEMORY_BANDWIDTH, "RATE", "the limit of the memory" },
  { "policy", OPT_POLICY, "sync|throttle|none|fail",
    "what to do when a disk does not converge, as for 'mirror'" },
  { "connections", OPT_CONNECTIONS, "N",
    "open at most N connections to each destination, 1 to 4 (default 4)" },
  { "auto-converge", OPT_AUTO_CONVERGE, NULL,
    "QEMU may slow the guest down when its memory does not converge" },
  { "timeout", OPT_TIMEOUT, "TIME",
    "roll back if the guest is not ready to be switched by then (default never)" },
  { "give-up-if-stalled", OPT_STALLED, "TIME",
    "roll back if nothing of a disk, or of the memory, moves for TIME (default never)" },
  { "switchover-timeout", OPT_SWITCH, "TIME",
    "roll back if the switch takes longer (default 30s)" },
  { "resume", OPT_RESUME, NULL, "go on with mirrors that were left over" },
  { "keep-mirrors", OPT_KEEP, NULL,
    "a roll-back does not cancel the mirrors: another try is quicker" },
  { "quit-source", OPT_QUIT, NULL, "end the source QEMU at the end (default: it is left paused)" },
  { "no-disk-check", OPT_NO_DISK_CHECK, NULL, "do not compare the QEMUs' disks with CONTROLs" },
  { "dry-run", OPT_DRY_RUN, NULL,
    "look at both sides, measure, and print how each disk's mirror would go; nothing is begun "
    "(exit status 4: one would not end)" },
  { "measure", OPT_MEASURE, "TIME", "with --dry-run: how long to measure each disk (default 5s)" },
  { "log", OPT_LOG, "FILE", "append what happens to FILE, one JSON object a line" },
  { "report", OPT_REPORT, "FILE", "write a JSON object about it all into FILE at the end" },
  { "json", 'j', NULL, "print that object on standard output, and no progress" },
  { "recover", OPT_RECOVER, NULL,
    "after a migrate whose processes were both killed: finish, or go back" },
  HOOK_READY_OPTION,
  HOOK_OPTIONS,
  CMD_OPTIONS_END,
};

bool
migrate_options_parse (struct migrate_options *o, struct cmd_line *line, int *status)
{
  int c;

  *o = (struct migrate_options){ .switch_ms = SWITCH_MS, .max_downtime_ms = MAX_DOWNTIME_MS };
  while ((c = cmd_getopt (line)) != -1) {
    *status = c == CMD_OPT_STOP ? line->status : take_option (o, c);
    if (c == CMD_OPT_STOP || *status != 0)
      return false;
  }
  *status = line->nr_operands > 0 ? cmd_usage_error ("'%s' is no option", line->operands[0].argv[0])
                                  : check_options (o);
  for (unsigned i = 0; i < o->nr_disks && *status == 0; i++) {
    *status = check_path_options (o, i);
    if (*status == 0)
      *status = check_own_disk_options (o, &o->disks[i]);
  }
  o->hooks.controls = o->controls;
  o->hooks.nr_controls = o->nr_disks;
  return *status == 0;
}

void
migrate_options_free (struct migrate_options *o)
{
  for (unsigned i = 0; i < o->nr_disks; i++)
    disk_option_free (&o->disks[i]);
  free (o->controls);
  free (o->disks);
  text_free (o->adopt);
}
