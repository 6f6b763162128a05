/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror migrate: options, and the order of the steps.  See migrate.h.
 */

#include "config.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd/control-query.h"
#include "cmd/migrate/migrate.h"
#include "cmd/units.h"
#include "cmd/worker.h"

#define SWITCH_MS 30000
#define MAX_DOWNTIME_MS 300

/* ---- what all files use
 * -------------------------------------------------------------------------- */

int
migrate_fail_with (struct migrate *m, int exit_status, char *message)
{
  if (m->reason == NULL) {
    m->reason = message != NULL ? message : strdup ("out of memory");
    m->exit_status = exit_status;
    log_text (m, "failure", m->reason != NULL ? m->reason : "out of memory");
  } else {
    log_text (m, "failure", message != NULL ? message : "out of memory");
    free (message);
  }
  return -1;
}

int
migrate_fail (struct migrate *m, int exit_status, const char *fmt, ...)
{
  char *message = NULL;
  va_list args;

  va_start (args, fmt);
  if (vasprintf (&message, fmt, args) == -1)
    message = NULL;
  va_end (args);
  return migrate_fail_with (m, exit_status, message);
}

void
migrate_wait (struct migrate *m, int ms)
{
  struct pollfd fds[3] = { { .fd = m->source.qmp != NULL ? control_client_fd (m->source.qmp) : -1 },
                           { .fd = m->dest.qmp != NULL ? control_client_fd (m->dest.qmp) : -1 },
                           { .fd = atomic_load (m->signal) == 0 ? m->signal_fd : -1 } };
  int i;

  for (i = 0; i < 3; i++)
    fds[i].events = POLLIN;
  /* What has been read already is not seen by poll(). */
  vm_events (&m->source);
  vm_events (&m->dest);
  poll (fds, 3, ms);
  vm_events (&m->source);
  vm_events (&m->dest);
}

int
migrate_interrupted (struct migrate *m)
{
  if (atomic_load (m->signal) != 0)
    return migrate_fail (m, EXIT_CANCELLED, "cancelled");
  if (m->o.timeout_ms != 0 && m->phase <= PHASE_MEMORY
      && migrate_now () - m->start_ms > (double)m->o.timeout_ms)
    return migrate_fail (m, EXIT_NOT_CONVERGED, "not done within %llu ms (--timeout): %s",
                         (unsigned long long)m->o.timeout_ms,
                         m->phase == PHASE_MEMORY ? "the memory did not converge"
                                                  : "the disks are not ready");
  return 0;
}

/* ---- the order of the steps
 * ---------------------------------------------------------------------- */

static int
up_to_commit (struct migrate *m)
{
  char *error = NULL;

  log_phase (m, PHASE_CHECK);
  if (migrate_check (m) == -1)
    return -1;
  log_phase (m, PHASE_MIRROR);
  if (disks_start (m) == -1 || disks_wait_ready (m) == -1)
    return -1;
  if (hook_run (&m->hooks, HOOK_READY, NULL, NULL, &error) == -1)
    return migrate_fail_with (m, EXIT_ERROR, error);
  log_phase (m, PHASE_MEMORY);
  if (step_memory (m) == -1)
    return -1;
  log_phase (m, PHASE_HOLD);
  if (step_hold (m) == -1)
    return -1;
  log_phase (m, PHASE_SWITCH);
  if (step_switch (m) == -1)
    return -1;
  log_phase (m, PHASE_COMMIT);
  return step_commit (m);
}

/* Figures that are to be had only now. */
static void
collect (struct migrate *m)
{
  json_t *ret = NULL;
  char *error = NULL;

  if (m->source.stop_ms > 0 && m->dest.resume_ms >= m->source.stop_ms)
    m->guest_pause_ms = m->dest.resume_ms - m->source.stop_ms;
  if (m->source.qmp != NULL && vm_call (&m->source, "query-migrate", NULL, &ret, NULL, &error) == 0)
    m->memory_bytes
        = json_integer_value (json_object_get (json_object_get (ret, "ram"), "transferred"));
  free (error);
  json_decref (ret);
  disks_reap (m);
  disks_refresh (m);
}

static void
quit_source (struct migrate *m)
{
  char *error = NULL;

  if (vm_call (&m->source, "quit", NULL, NULL, NULL, &error) == -1)
    cmd_warning ("%s", error != NULL ? error : "out of memory");
  free (error);
}

/* Returns whether the guest runs at the destination. */
static bool
after_commit (struct migrate *m)
{
  if (migrate_after_commit (m, step_start) == 0) {
    log_phase (m, PHASE_DONE);
    collect (m);
    if (m->o.quit_source)
      quit_source (m);
    hook_run_warn (&m->hooks, HOOK_AFTER_COMMIT, m->result.token, NULL);
    return true;
  }
  if (!m->cont_sent) /* it never ran there */
    migrate_back (m);
  else if (m->dest.resume_ms > 0)
    cmd_error ("the guest was started at the destination, and was lost there: start it there anew, "
               "from its"
               " disks; do NOT start the source VM");
  else
    cmd_error ("the disks are handed over and the destination VM may have run: do NOT start the "
               "source VM; see"
               " nbdmirror-migrate(1), FAILURES");
  return false;
}

static int
run_migration (struct migrate *m)
{
  if (coordinator_result_init (&m->result, m->nr) == -1) {
    cmd_error ("out of memory");
    return EXIT_ERROR;
  }
  if (up_to_commit (m) == 0) {
    if (after_commit (m))
      return EXIT_DONE;
  }
  /* Refused before anything was done: both machines are left as they are. */
  else if (m->phase != PHASE_CHECK)
    migrate_back (m);
  if (m->exit_status == EXIT_DONE)
    m->exit_status = EXIT_ERROR;
  cmd_error ("%s", m->reason != NULL ? m->reason : "out of memory");
  hook_run_warn (&m->hooks, HOOK_ABORT, NULL, m->reason);
  return m->exit_status;
}

/* The rest of what a coordinator had to do that was killed.  A hook is not run twice: better not at
 * all. */
static int
run_guardian (struct migrate *m)
{
  int status = guard_recover (m);

  if (status == EXIT_DONE && m->phase == PHASE_DONE) {
    free (m->reason);
    m->reason = NULL;
    collect (m);
    if (m->o.quit_source)
      quit_source (m);
    if (m->known.phase != PHASE_DONE)
      hook_run_warn (&m->hooks, HOOK_AFTER_COMMIT, m->result.token, NULL);
    return status;
  }
  cmd_error ("%s", m->reason != NULL ? m->reason : "out of memory");
  if (m->known.phase != PHASE_FAILED)
    hook_run_warn (&m->hooks, HOOK_ABORT, NULL, m->reason);
  return status;
}

/* ---- options ------------------------------------------------------------------------------------
 */

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
  OPT_SWITCH,
  OPT_POLICY,
  OPT_LOG,
  OPT_REPORT,
  OPT_RESUME,
  OPT_KEEP,
  OPT_QUIT,
  OPT_AUTO_CONVERGE,
  OPT_NO_DISK_CHECK,
  OPT_RECOVER
};

/* CONTROL=DEST.  TEXT is cut in two. */
static int
add_disk (struct migrate *m, char *text)
{
  char *equals = strchr (text, '=');
  struct disk *more;
  unsigned i;

  if (equals == NULL || equals == text || equals[1] == '\0')
    return cmd_usage_error ("--disk %s: CONTROL=DEST", text);
  *equals = '\0';
  for (i = 0; i < m->nr; i++)
    if (strcmp (m->disks[i].control, text) == 0 || strcmp (m->disks[i].dest, equals + 1) == 0)
      return cmd_usage_error ("--disk %s=%s: given twice", text, equals + 1);
  more = realloc (m->disks, (m->nr + 1) * sizeof *more);
  if (more == NULL) {
    cmd_error ("out of memory");
    return EXIT_ERROR;
  }
  m->disks = more;
  m->disks[m->nr++] = (struct disk){ .control = text, .dest = equals + 1 };
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

/* 0, or an exit status. */
static int
take_option (struct migrate *m, int c)
{
  struct migrate_options *o = &m->o;
  enum job_policy policy;
  uint64_t ignored;

  switch (c) {
  case OPT_SOURCE_QMP:
    m->source.path = optarg;
    return 0;
  case OPT_DEST_QMP:
    m->dest.path = optarg;
    return 0;
  case OPT_MEMORY_URI:
    o->memory_uri = optarg;
    return 0;
  case OPT_INCOMING_URI:
    o->incoming_uri = optarg;
    return 0;
  case OPT_DISK:
    return add_disk (m, optarg);
  case OPT_BANDWIDTH:
    o->bandwidth = optarg;
    return take_rate ("--bandwidth", &ignored);
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
  case OPT_SWITCH:
    return take_time ("--switchover-timeout", &o->switch_ms);
  case OPT_POLICY:
    o->policy = optarg;
    return job_policy_parse (optarg, &policy)
               ? 0
               : cmd_usage_error ("--policy %s: must be sync, throttle, none or fail", optarg);
  case OPT_LOG:
    o->log = optarg;
    return 0;
  case OPT_REPORT:
    o->report = optarg;
    return 0;
  case OPT_RESUME:
    o->resume = true;
    return 0;
  case OPT_KEEP:
    o->keep_mirrors = true;
    return 0;
  case OPT_QUIT:
    o->quit_source = true;
    return 0;
  case OPT_AUTO_CONVERGE:
    o->auto_converge = true;
    return 0;
  case OPT_NO_DISK_CHECK:
    o->no_disk_check = true;
    return 0;
  case OPT_RECOVER:
    o->recover = true;
    return 0;
  case 'j':
    o->json = true;
    return 0;
  default:
    return hook_option (&m->hooks, c) ? 0 : EXIT_USAGE;
  }
}

static int
check_options (struct migrate *m)
{
  if (m->source.path == NULL || m->dest.path == NULL)
    return cmd_usage_error ("%s is missing",
                            m->source.path == NULL ? "--source-qmp" : "--dest-qmp");
  if (m->nr == 0)
    return cmd_usage_error ("--disk CONTROL=DEST is missing, once for each disk of the guest");
  if (m->o.memory_uri == NULL && !m->o.recover)
    return cmd_usage_error ("--memory-uri is missing");
  return 0;
}

/* False: there is nothing more to do (--help too), with *STATUS to exit with. */
static bool
parse (struct cmd_line *line, struct migrate *m, int *status)
{
  static const struct option longopts[]
      = { { "source-qmp", required_argument, NULL, OPT_SOURCE_QMP },
          { "dest-qmp", required_argument, NULL, OPT_DEST_QMP },
          { "memory-uri", required_argument, NULL, OPT_MEMORY_URI },
          { "incoming-uri", required_argument, NULL, OPT_INCOMING_URI },
          { "disk", required_argument, NULL, OPT_DISK },
          { "bandwidth", required_argument, NULL, OPT_BANDWIDTH },
          { "connections", required_argument, NULL, OPT_CONNECTIONS },
          { "max-downtime", required_argument, NULL, OPT_MAX_DOWNTIME },
          { "memory-bandwidth", required_argument, NULL, OPT_MEMORY_BANDWIDTH },
          { "timeout", required_argument, NULL, OPT_TIMEOUT },
          { "switchover-timeout", required_argument, NULL, OPT_SWITCH },
          { "policy", required_argument, NULL, OPT_POLICY },
          { "log", required_argument, NULL, OPT_LOG },
          { "report", required_argument, NULL, OPT_REPORT },
          { "resume", no_argument, NULL, OPT_RESUME },
          { "keep-mirrors", no_argument, NULL, OPT_KEEP },
          { "quit-source", no_argument, NULL, OPT_QUIT },
          { "auto-converge", no_argument, NULL, OPT_AUTO_CONVERGE },
          { "no-disk-check", no_argument, NULL, OPT_NO_DISK_CHECK },
          { "recover", no_argument, NULL, OPT_RECOVER },
          { "json", no_argument, NULL, 'j' },
          HOOK_READY_OPTION,
          HOOK_LONG_OPTIONS,
          CMD_LONG_OPTIONS_END };
  int c;

  while ((c = cmd_getopt (line, "j", longopts)) != -1) {
    *status = c == CMD_OPT_STOP ? line->status : take_option (m, c);
    if (c == CMD_OPT_STOP || *status != 0)
      return false;
  }
  *status = line->nr_operands > 0 ? cmd_usage_error ("'%s' is no option", line->operands[0].argv[0])
                                  : check_options (m);
  return *status == 0;
}

static int
set_up (struct migrate *m)
{
  unsigned i;

  m->controls = calloc (m->nr, sizeof *m->controls);
  m->rolled_back = json_array ();
  if (m->controls == NULL || m->rolled_back == NULL) {
    cmd_error ("out of memory");
    return EXIT_ERROR;
  }
  for (i = 0; i < m->nr; i++)
    m->controls[i] = (char *)m->disks[i].control;
  m->hooks.controls = m->controls;
  m->hooks.nr_controls = m->nr;
  m->signal_fd = worker_signals (&m->signal);
  return m->signal_fd == -1 || log_open (m) == -1 ? EXIT_ERROR : 0;
}

static void
tear_down (struct migrate *m)
{
  log_close (m);
  coordinator_free (m->coordinator);
  coordinator_result_free (&m->result);
  vm_close (&m->source);
  vm_close (&m->dest);
  json_decref (m->source.old_caps);
  json_decref (m->source.old_params);
  json_decref (m->dest.old_caps);
  disks_free (m);
  free (m->disks);
  free (m->controls);
  free (m->reason);
  json_decref (m->rolled_back);
}

static int
work (struct migrate *m)
{
  int status = set_up (m);

  if (status == 0) {
    guard_ready (m);
    m->exit_status = m->died[0] != '\0' ? run_guardian (m)
                     : m->o.recover     ? migrate_recover (m)
                                        : run_migration (m);
    status = m->exit_status;
    log_report (m);
  }
  guard_finished (m, status);
  return status;
}

static int
run (struct cmd_line *line)
{
  struct migrate m = { .source = { .name = "source" },
                       .dest = { .name = "destination" },
                       .o = { .switch_ms = SWITCH_MS, .max_downtime_ms = MAX_DOWNTIME_MS },
                       .signal_fd = -1,
                       .guest_pause_ms = -1,
                       .start_ms = migrate_now () };
  int status;

  m.source.m = m.dest.m = &m;
  if (parse (line, &m, &status))
    status = m.o.recover ? work (&m) : guard_run (&m, work);
  tear_down (&m);
  return status;
}

const struct subcommand subcommand_migrate = {
  "migrate",
  "--source-qmp SOCK --dest-qmp SOCK --memory-uri URI\n"
  "                         --disk CONTROL=DEST ... [OPTIONS]",
  "Move a running VM: its memory, and all its disks at one instant.",
  "SOCK are the QMP sockets of the two QEMUs.  The destination's was started with -incoming defer\n"
  "-S (or with the memory's URI).  CONTROL is the control socket of a disk of the guest, DEST "
  "where\n"
  "it goes: the mirror's URI that 'nbdmirror receive' printed, or as for 'mirror'.\n\n"
  "  --memory-uri URI           where the source sends the memory: tcp:HOST:PORT, unix:PATH\n"
  "  --incoming-uri URI         where the destination listens for it, if that is another one\n"
  "  --max-downtime TIME        pause aimed at, of the disks and of the memory (300ms)\n"
  "  --bandwidth RATE           limit of each disk's mirror (k, M, G; bytes a second)\n"
  "  --memory-bandwidth RATE    limit of the memory's\n"
  "  --policy POLICY            when a disk does not converge, see 'mirror'\n"
  "  --connections N            to each destination\n"
  "  --auto-converge            QEMU may slow the guest down when its memory does not converge\n"
  "  --timeout TIME             roll back if the guest is not ready to be switched by then "
  "(never)\n"
  "  --switchover-timeout TIME  roll back if the switch takes longer (30s)\n"
  "  --resume                   go on with mirrors that were left over\n"
  "  --keep-mirrors             a roll-back does not cancel the mirrors: another try is quicker\n"
  "  --quit-source              end the source QEMU at the end (it is left paused otherwise)\n"
  "  --no-disk-check            do not compare the QEMUs' disks with CONTROLs\n"
  "  --log FILE                 append what happens to FILE, an object a line\n"
  "  --report FILE              write an object about it all to FILE at the end\n"
  "  -j, --json                 print that object instead of progress\n"
  "  --recover                  after a migrate whose processes were both killed: finish, or go "
  "back\n" HOOK_READY_HELP HOOK_OPTIONS_HELP "\nOn any failure before the disks are handed over "
  "the guest goes on at the source, the destination\n"
  "QEMU is ended, and the mirrors are cancelled.  Ctrl-C does the same: exit status 6.  It is two\n"
  "processes: when one is killed the other one sees to it.\n\n"
  "Example:\n"
  "  nbdmirror migrate --source-qmp /run/vm1.qmp --dest-qmp /run/hostb-vm1.qmp \\\n"
  "      --memory-uri tcp:hostb:4444 --disk /run/vm1.control=nbd://hostb:10809/mirror\n\n"
  "See nbdmirror-migrate(1).\n",
  run
};
