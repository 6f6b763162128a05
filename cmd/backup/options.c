/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror backup: the options and the operands.  See backup.h.
 */

#include "config.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/backup/backup.h"
#include "cmd/control-query.h"
#include "cmd/far/far.h"
#include "cmd/units.h"
#include "cmd/worker.h"

#define HOOK_MS 30000

enum {
  OPT_FULL = 0x900,
  OPT_INCREMENTAL,
  OPT_AUTO,
  OPT_DISK_NAME,
  OPT_STATE,
  OPT_COMPRESS,
  OPT_POLICY,
  OPT_MAX_DURATION,
  OPT_MAX_DOWNTIME,
  OPT_BANDWIDTH,
  OPT_BUDGET,
  OPT_BEFORE_HOLD,
  OPT_AFTER_RELEASE,
  OPT_HOOK_LIMIT,
  OPT_REQUIRE_FROZEN,
  OPT_INCLUDE,
  OPT_DRY_RUN,
  OPT_REPORT,
  OPT_METRICS,
  OPT_NO_PROGRESS
};

static const struct cmd_option options[] = {
  { "auto", OPT_AUTO, NULL,
    "incremental where the repository and the disk's recordings prove that it can be, else full "
    "(default)" },
  { "full", OPT_FULL, NULL, "every disk is full" },
  { "incremental", OPT_INCREMENTAL, NULL,
    "refuse (exit status 7) where a disk cannot be incremental" },
  { "disk-name", OPT_DISK_NAME, "DISK=NAME",
    "call the disk NAME in the repository (default: the file name of DISK without its last "
    "suffix)" },
  { "state", OPT_STATE, "DISK=FILE", "the state file of DISK, an image whose guest is off" },
  { "compress", OPT_COMPRESS, NULL, "compress the files with zstd, as qemu-img does" },
  { "include", OPT_INCLUDE, "FILE",
    "keep a copy of FILE beside the disks, for instance the guest's definition" },
  { "bandwidth", OPT_BANDWIDTH, "RATE", "each disk: copy at most RATE bytes a second" },
  { "budget", OPT_BUDGET, "NAME[:WEIGHT]",
    "share the budget NAME with other jobs of this host (see 'nbdmirror budget')" },
  { "policy", OPT_POLICY, "sync|throttle|none|fail",
    "what to do when a disk does not converge, as for mirror (default none: no guest is slowed "
    "down)" },
  { "max-downtime", OPT_MAX_DOWNTIME, "TIME",
    "hold the guest's writes for at most TIME at the instant of the backup (default 300ms)" },
  { "max-duration", OPT_MAX_DURATION, "TIME",
    "end (exit status 4) if the instant has not come within TIME (default: no limit)" },
  { "before-hold-exec", OPT_BEFORE_HOLD, "COMMAND",
    "run COMMAND with /bin/sh before the instant, for instance to freeze the guest's file "
    "systems" },
  { "after-release-exec", OPT_AFTER_RELEASE, "COMMAND",
    "run COMMAND after the instant, whatever has become of it, for instance to thaw them" },
  { "hook-limit", OPT_HOOK_LIMIT, "TIME",
    "kill such a command after TIME, and run the second one at the latest TIME after the first "
    "began (default 30s)" },
  { "require-frozen", OPT_REQUIRE_FROZEN, NULL,
    "make no backup (exit status 4) if the first command fails" },
  { "dry-run", OPT_DRY_RUN, NULL,
    "only say what each disk would be, how many bytes, and for how long" },
  { "report", OPT_REPORT, "FILE", "write the manifest into FILE as well" },
  { "metrics", OPT_METRICS, "FILE",
    "write FILE for the textfile collector of Prometheus' node exporter" },
  { "no-progress", OPT_NO_PROGRESS, NULL,
    "print warnings, errors and the line at the end, and nothing else" },
  { "json", 'j', NULL, "print the manifest on standard output, and no progress" },
  CMD_OPTIONS_END,
};

/* What the options say of single disks. */
struct names {
  char **disk_names, **states; /* DISK=VALUE, in argv */
  unsigned nr_disk_names, nr_states;
};

static int
take_time (const char *option, uint64_t *ms)
{
  if (!worker_parse_ms (option, optarg, ms))
    return EXIT_USAGE;
  if (*ms < 1 || *ms > INT_MAX)
    return cmd_usage_error ("%s %s: must be at least 1ms, and less than 24 days", option, optarg);
  return 0;
}

/* An option whose value another program reads: look at it now. */
static int
check_value (int c)
{
  enum job_policy policy;
  const char *why;
  uint64_t n;

  if (c == OPT_POLICY && !job_policy_parse (optarg, &policy))
    return cmd_usage_error ("--policy %s: must be sync, throttle, none or fail", optarg);
  if (c == OPT_BANDWIDTH && (why = units_parse_rate (optarg, &n)) != NULL)
    return cmd_usage_error ("--bandwidth %s: %s", optarg, why);
  if (c == OPT_MAX_DOWNTIME)
    return take_time ("--max-downtime", &n);
  if ((c == OPT_DISK_NAME || c == OPT_STATE) && strchr (optarg, '=') == NULL)
    return cmd_usage_error ("--%s %s: must be DISK=%s", c == OPT_STATE ? "state" : "disk-name",
                            optarg, c == OPT_STATE ? "FILE" : "NAME");
  return 0;
}

static int
take_option (struct backup_run *run, struct names *names, int c)
{
  int status = check_value (c);

  if (status != 0)
    return status;
  switch (c) {
  case OPT_AUTO:
  case OPT_FULL:
  case OPT_INCREMENTAL:
    if (run->mode_given != 0 && run->mode_given != c)
      return cmd_usage_error ("--auto, --full and --incremental exclude each other");
    run->mode_given = c;
    run->mode = c == OPT_FULL          ? BACKUP_FULL
                : c == OPT_INCREMENTAL ? BACKUP_INCREMENTAL
                                       : BACKUP_AUTO;
    return 0;
  case OPT_DISK_NAME:
    names->disk_names[names->nr_disk_names++] = optarg;
    return 0;
  case OPT_STATE:
    names->states[names->nr_states++] = optarg;
    return 0;
  case OPT_INCLUDE:
    run->includes[run->nr_includes++] = optarg;
    return 0;
  case OPT_MAX_DURATION:
    return take_time ("--max-duration", &run->max_duration_ms);
  case OPT_HOOK_LIMIT:
    return take_time ("--hook-limit", &run->hook_ms);
  case OPT_COMPRESS:
    run->compress = true;
    return 0;
  case OPT_REQUIRE_FROZEN:
    run->require_frozen = true;
    return 0;
  case OPT_DRY_RUN:
    run->dry_run = true;
    return 0;
  case OPT_NO_PROGRESS:
    run->no_progress = true;
    return 0;
  case 'j':
    run->json = run->no_progress = true;
    return 0;
  case OPT_REPORT:
    run->report = optarg;
    return report_possible ("--report", optarg) ? 0 : EXIT_ERROR;
  default:
    break;
  }
  const char **value = c == OPT_POLICY          ? &run->policy
                       : c == OPT_MAX_DOWNTIME  ? &run->max_downtime
                       : c == OPT_BANDWIDTH     ? &run->bandwidth
                       : c == OPT_BUDGET        ? &run->budget
                       : c == OPT_BEFORE_HOLD   ? &run->before_hold
                       : c == OPT_AFTER_RELEASE ? &run->after_release
                                                : &run->metrics;
  *value = optarg;
  return 0;
}

/* ---- the disks ---- */

/* The disk that ENTRY, a DISK=VALUE, means, or NULL: where several fit, that with the longest name.
 */
static const char *
meant_by (const struct backup_run *run, const char *entry)
{
  const char *meant = NULL;

  for (unsigned i = 0; i < run->nr_disks; i++) {
    const char *operand = run->disks[i].operand;
    size_t n = strlen (operand);
    if (strncmp (entry, operand, n) == 0 && entry[n] == '='
        && (meant == NULL || n > strlen (meant)))
      meant = operand;
  }
  return meant;
}

/* What LIST says of the disk OPERAND, or NULL. */
static const char *
value_for (const struct backup_run *run, char *const *list, unsigned nr, const char *operand)
{
  for (unsigned i = 0; i < nr; i++) {
    const char *meant = meant_by (run, list[i]);
    if (meant != NULL && strcmp (meant, operand) == 0)
      return list[i] + strlen (meant) + 1;
  }
  return NULL;
}

static int
name_disk (struct backup_run *run, unsigned nr, const struct names *names)
{
  struct backup_disk *d = &run->disks[nr];
  const char *operand = d->operand;
  const char *id = value_for (run, names->disk_names, names->nr_disk_names, operand);

  d->id = id != NULL ? text_copy (id) : backup_disk_id_from_path (operand);
  const char *fault = backup_disk_id_fault (d->id);
  if (fault != NULL)
    return cmd_usage_error ("%s: '%s' cannot be a disk's name: %s (see --disk-name)", operand,
                            d->id, fault);
  for (unsigned i = 0; i < nr; i++)
    if (strcmp (run->disks[i].id, d->id) == 0)
      return cmd_usage_error (
          "%s and %s have the same name '%s': give them others with --disk-name",
          run->disks[i].operand, operand, d->id);
  d->place = backup_absolute (operand);
  d->state = value_for (run, names->states, names->nr_states, operand);
  bool is_image = !query_is_control (operand);
  if (!is_image && d->state != NULL && access (operand, F_OK) == 0)
    return cmd_usage_error ("--state: %s is a control socket, and its server has the state file",
                            operand);
  d->control = is_image ? text_printf ("%s/%u.control", run->folder, nr) : text_copy (d->place);
  return 0;
}

/* Every --disk-name and --state names a disk. */
static int
check_names (const struct backup_run *run, char *const *list, unsigned nr, const char *option)
{
  for (unsigned i = 0; i < nr; i++)
    if (meant_by (run, list[i]) == NULL)
      return cmd_usage_error ("%s %s: there is no such disk on the command line", option, list[i]);
  return 0;
}

static int
name_disks (struct backup_run *run, const struct cmd_operand *operands, unsigned nr,
            const struct names *names)
{
  int status = 0;

  for (unsigned i = 0; i < nr; i++) {
    if (operands[i].nr_args != 1)
      return cmd_usage_error ("a disk is a control socket or an image, not a command");
    run->disks[i]
        = (struct backup_disk){ .operand = operands[i].argv[0], .pause_ms = -1, .changed = -1 };
    run->nr_disks = i + 1;
  }
  for (unsigned i = 0; status == 0 && i < nr; i++)
    status = name_disk (run, i, names);
  if (status == 0)
    status = check_names (run, names->disk_names, names->nr_disk_names, "--disk-name");
  if (status == 0)
    status = check_names (run, names->states, names->nr_states, "--state");
  return status;
}

/* FILE.tmp takes the place of FILE. */
static int
check_metrics (const struct backup_run *run)
{
  if (run->metrics == NULL)
    return 0;
  CLEANUP_TEXT char *temporary = text_printf ("%s.tmp", run->metrics);
  return report_possible ("--metrics", temporary) ? 0 : EXIT_ERROR;
}

/* May WHAT the user has given as TEXT (NULL: he has not) be in the manifest? */
static int
check_text (const char *what, const char *text)
{
  if (text == NULL || backup_is_utf8 (text))
    return 0;
  return cmd_usage_error ("%s %s: it is not UTF-8, so the backup cannot note it", what, text);
}

/* What the manifest notes as it is, beside the files. */
static int
check_texts (const struct backup_run *run)
{
  int status = check_text ("--before-hold-exec", run->before_hold);

  if (status == 0)
    status = check_text ("--after-release-exec", run->after_release);
  for (unsigned i = 0; status == 0 && i < run->nr_disks; i++)
    status = check_text ("the disk", run->disks[i].place);
  return status;
}

/* A wrong name is told now, and not when all has been copied.  The command before the hold may
 * still make a file. */
static int
check_includes (const struct backup_run *run)
{
  for (unsigned i = 0; i < run->nr_includes; i++) {
    CLEANUP_TEXT char *error = NULL, *name = backup_include_name (i, run->includes[i]);
    int status = check_text ("--include", run->includes[i]);
    if (status != 0)
      return status;
    if (strlen (name) > NAME_MAX)
      return cmd_usage_error ("--include %s: its name is too long", run->includes[i]);
    if (run->before_hold != NULL && access (run->includes[i], F_OK) == -1)
      continue;
    CLEANUP_FD int fd = store_open_include (run->includes[i], &error);
    if (fd != -1)
      continue;
    cmd_say ("%s", error);
    return EXIT_ERROR;
  }
  return 0;
}

/* True: all was read.  Else *STATUS is the exit status. */
static bool
read_line (struct cmd_line *line, struct backup_run *run, struct names *names, int *status)
{
  int c;

  while ((c = cmd_getopt (line)) != -1) {
    *status = c == CMD_OPT_STOP ? line->status : take_option (run, names, c);
    if (c == CMD_OPT_STOP || *status != 0)
      return false;
  }
  if (!cmd_operands_ok (line, 2, 0, "CONTROL REPOSITORY")) {
    *status = line->status;
    return false;
  }
  if (line->operands[line->nr_operands - 1].nr_args != 1) {
    *status = cmd_usage_error ("REPOSITORY is a directory, not a command");
    return false;
  }
  if (run->require_frozen && run->before_hold == NULL) {
    *status = cmd_usage_error ("--require-frozen goes with --before-hold-exec");
    return false;
  }
  *status = far_check (line->operands[line->nr_operands - 1].argv[0]);
  if (*status == 0)
    *status = name_disks (run, line->operands, line->nr_operands - 1, names);
  if (*status == 0)
    *status = check_texts (run);
  if (*status == 0)
    *status = check_includes (run);
  if (*status == 0)
    *status = check_metrics (run);
  return *status == 0;
}

static int
run (struct cmd_line *line)
{
  size_t n = (size_t)line->argc;
  struct backup_run run = { .policy = "none",
                            .max_downtime = "300ms",
                            .hook_ms = HOOK_MS,
                            .disks = calloc (n, sizeof *run.disks),
                            .includes = calloc (n, sizeof *run.includes),
                            .begun_ms = clock_ms (),
                            .begun_us = clock_date_us () };
  struct names names
      = { .disk_names = calloc (n, sizeof (char *)), .states = calloc (n, sizeof (char *)) };
  int status = EXIT_ERROR;

  if (run.disks == NULL || run.includes == NULL || names.disk_names == NULL || names.states == NULL)
    cmd_say ("out of memory");
  else if (backup_make_folder (&run) == 0 && read_line (line, &run, &names, &status))
    status = backup_run_steps (&run, line->operands[line->nr_operands - 1].argv[0]);
  backup_free_run (&run);
  free (run.disks);
  free (run.includes);
  free (names.disk_names);
  free (names.states);
  return status;
}

const struct subcommand subcommand_backup = {
  "backup",
  "CONTROL... REPOSITORY [OPTIONS]",
  "Back up disks that are in use, all at one instant.",
  "Each disk is copied into a new qcow2 file of REPOSITORY, a directory that is made if it is\n"
  "missing, while its guest keeps writing.  A file holds the whole disk, or what was changed "
  "since\n"
  "the last backup.  At the end all copies stand at one instant.\n\n"
  "CONTROL is a disk's control socket (serve --control); or an image whose guest is off, with\n"
  "--state.\n",
  options,
  NULL,
  "The manual is nbdmirror-backup(1).\n\n"
  "Examples:\n"
  "  nbdmirror backup /var/lib/nbdmirror/vm1a.control /var/lib/nbdmirror/vm1b.control /backup/vm1\n"
  "  nbdmirror backup /var/lib/nbdmirror/vm1a.control /backup/vm1 \\\n"
  "            --bandwidth 100M --include /etc/vm1.xml\n",
  run,
};
