/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror migrate: the order of the steps.  See migrate.h.
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "cmd/migrate/adopted.h"
#include "cmd/migrate/guard.h"
#include "cmd/migrate/migrate.h"
#include "cmd/worker.h"
#include "control/name.h"

static int
run_ready_hook (struct migrate *m)
{
  char *error = NULL;

  if (hook_run (&m->options.hooks, HOOK_READY, NULL, NULL, &error) == -1)
    return journal_fail_with (&m->journal, EXIT_ERROR, error);
  return 0;
}

/* The disks have control sockets: at once, or with --adopt from now on. */
static int
check_all (struct migrate *m)
{
  return migrate_check_machines (m) == -1
                 || (m->options.adopt == NULL && migrate_check_disks (m) == -1)
             ? -1
             : 0;
}

static int
adopt_all (struct migrate *m)
{
  if (m->options.adopt == NULL)
    return 0;
  progress_phase (m, PHASE_ADOPT);
  return adopted_begin (m) == -1 || migrate_check_disks (m) == -1 ? -1 : 0;
}

static int
up_to_commit (struct migrate *m)
{
  static const struct {
    enum phase phase;
    int (*step) (struct migrate *m);
  } steps[] = { { PHASE_CHECK, check_all },    { PHASE_CHECK, adopt_all },
                { PHASE_MIRROR, step_mirror }, { PHASE_MIRROR, run_ready_hook },
                { PHASE_MEMORY, step_memory }, { PHASE_HOLD, step_hold },
                { PHASE_SWITCH, step_switch }, { PHASE_COMMIT, step_commit } };

  for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++) {
    if (i == 0 || steps[i].phase != steps[i - 1].phase)
      progress_phase (m, steps[i].phase);
    if (steps[i].step (m) == -1)
      return -1;
  }
  return 0;
}

/* QEMU flushes its disks before it ends, and waits for the server of one that was killed. */
static void
quit_source (struct migrate *m)
{
  CLEANUP_TEXT char *error = NULL;

  if (machine_call (&m->machines.source, "quit", NULL, NULL, NULL, &error) == 0)
    return;
  if (adopted_revive (m, false, true) == 0)
    cmd_warning ("%s", error);
}

/* A disk's server was killed before it has heard of the commit: the source QEMU would not answer,
 * nor end, and the record of the hand-over is not there yet. */
static void
tell_lost_servers (struct migrate *m)
{
  CLEANUP_TEXT char *error = NULL;

  if (adopted_revive (m, false, true) > 0 && m->coordinator != NULL
      && coordinator_finalize (m->coordinator, &m->result, &error) == -1)
    cmd_warning ("%s", error);
}

/* The guest runs at the destination. */
static int
tidy_up (struct migrate *m)
{
  int status = EXIT_DONE;

  tell_lost_servers (m);
  report_collect (m);
  if (m->options.quit_source)
    quit_source (m);
  if (m->options.give_back && !adopted_give_back (m))
    status = EXIT_ERROR;
  if (m->options.adopt != NULL && m->options.quit_source)
    adopted_forget (m);
  /* A hook may use the monitors, which have one client at a time. */
  machine_close (&m->machines.source);
  machine_close (&m->machines.dest);
  return status;
}

/* Returns whether the guest runs at the destination. */
static bool
go_on_at_destination (struct migrate *m)
{
  if (finish_hand_over (m, finish_start) == 0) {
    progress_phase (m, PHASE_DONE);
    m->journal.exit_status = tidy_up (m);
    notes_hooked (m->notes);
    hook_run_warn (&m->options.hooks, HOOK_AFTER_COMMIT, m->result.token, NULL);
    return true;
  }
  if (!m->cont_sent) /* it never ran there */
    migrate_back (m, true);
  else if (m->machines.dest.resume_ns > 0)
    cmd_say ("the guest was started at the destination, and was lost there: start it there anew, "
             "from its"
             " disks; do NOT start the source VM");
  else
    cmd_say ("the disks are handed over and the destination VM may have run: do NOT start the "
             "source VM; see"
             " nbdmirror-migrate(1), FAILURES");
  return false;
}

static int
run_migration (struct migrate *m)
{
  struct journal *j = &m->journal;

  if (coordinator_result_init (&m->result, m->disks.nr) == -1) {
    cmd_say ("out of memory");
    return EXIT_ERROR;
  }
  if (up_to_commit (m) == 0) {
    if (go_on_at_destination (m))
      return j->exit_status;
  }
  /* Refused before anything was begun: both machines are left as they are. */
  else if (j->phase == PHASE_CHECK || j->phase == PHASE_ADOPT) {
    migrate_restore_settings (m);
    if (j->phase == PHASE_ADOPT)
      adopted_end (m);
  } else
    migrate_back (m, m->committed);
  if (j->exit_status == EXIT_DONE)
    j->exit_status = EXIT_ERROR;
  cmd_say ("%s", j->reason);
  notes_hooked (m->notes);
  hook_run_warn (&m->options.hooks, HOOK_ABORT, NULL, j->reason);
  return j->exit_status;
}

/* The coordinator was killed, and this does the rest of its work.  The last hook may not run twice:
 * if the coordinator had come to it, nobody knows whether it has run. */
static int
run_guardian (struct migrate *m, const struct guard_death *death)
{
  struct journal *j = &m->journal;
  bool hooked = notes_read_hooked (m->notes);
  int status
      = migrate_recover_guarded (m, death->how, death->cancelled ? EXIT_CANCELLED : EXIT_ERROR);

  if (status == EXIT_DONE && j->phase == PHASE_DONE) {
    text_free (j->reason);
    j->reason = NULL;
    status = tidy_up (m);
    if (!hooked)
      hook_run_warn (&m->options.hooks, HOOK_AFTER_COMMIT, m->result.token, NULL);
    return status;
  }
  cmd_say ("%s", j->reason);
  if (!hooked)
    hook_run_warn (&m->options.hooks, HOOK_ABORT, NULL, j->reason);
  return status;
}

static int
set_up (struct migrate *m)
{
  if (disks_init (&m->disks, &m->options, &m->journal) == -1) {
    cmd_say ("out of memory");
    return EXIT_ERROR;
  }
  m->machines.signal_fd = worker_signals (&m->machines.signal);
  return m->machines.signal_fd == -1 || journal_open (&m->journal, m->options.log) == -1
             ? EXIT_ERROR
             : EXIT_DONE;
}

/* The coordinator, or the guardian after its DEATH. */
static int
work (void *opaque, const struct guard_death *death)
{
  struct migrate *m = opaque;
  int status = set_up (m);

  if (status == EXIT_DONE && m->options.dry_run)
    status = migrate_dry_run (m);
  else if (status == EXIT_DONE) {
    if (m->notes != NULL)
      guard_ready (death);
    if (m->notes != NULL && death == NULL)
      journal_event (&m->journal, "coordinator",
                     json_pack ("{s:i, s:i}", "pid", (int)getpid (), "guardian", (int)getppid ()));
    m->journal.exit_status = status = death != NULL        ? run_guardian (m, death)
                                      : m->options.recover ? migrate_recover (m)
                                                           : run_migration (m);
    report_tell (m);
  }
  if (death == NULL) {
    fflush (stdout);
    notes_finished (m->notes, status);
  }
  return status;
}

static int
run_guarded (struct migrate *m)
{
  m->notes = notes_create (m->options.nr_disks);
  if (m->notes == NULL) {
    cmd_say ("mmap: %s", strerror (errno));
    return EXIT_ERROR;
  }
  int status = guard_run (m->notes, m->options.switch_ms, work, m);
  notes_free (m->notes);
  m->notes = NULL;
  return status;
}

static void
tear_down (struct migrate *m)
{
  journal_close (&m->journal);
  coordinator_free (m->coordinator);
  coordinator_result_free (&m->result);
  machine_free (&m->machines.source);
  machine_free (&m->machines.dest);
  disks_free (&m->disks);
  migrate_options_free (&m->options);
}

/* Do the workers of disks that QEMU has open by itself use the monitor that we use? */
static bool
is_shared (const struct migrate_options *o)
{
  struct stat ours, its;

  if (stat (o->source_qmp, &ours) == -1)
    return false;
  for (unsigned i = 0; i < o->nr_disks; i++) {
    CLEANUP_TEXT char *monitor = NULL;
    const char *node;
    if (control_name_split (o->disks[i].control, &monitor, &node) && stat (monitor, &its) == 0
        && its.st_dev == ours.st_dev && its.st_ino == ours.st_ino)
      return true;
  }
  return false;
}

void
migrate_share_monitor (struct migrate *m)
{
  m->machines.source.brief = m->shared;
  if (m->shared)
    machine_close (&m->machines.source);
}

static int
run (struct cmd_line *line)
{
  struct migrate m = { .journal = { .start_ns = clock_ns () }, .machines = { .signal_fd = -1 } };
  int status;

  if (migrate_options_parse (&m.options, line, &status)) {
    m.journal.json = m.options.json;
    m.machines.source
        = (struct machine){ .name = "source", .path = m.options.source_qmp, .journal = &m.journal };
    m.machines.dest = (struct machine){ .name = "destination",
                                        .path = m.options.dest_qmp,
                                        .journal = &m.journal };
    m.shared = is_shared (&m.options);
    migrate_share_monitor (&m);
    m.machines.source.only_look = m.machines.dest.only_look = m.options.dry_run;
    status = m.options.recover || m.options.dry_run ? work (&m, NULL) : run_guarded (&m);
  }
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
  "it goes: the mirror's URI that 'nbdmirror receive' printed, or as for 'mirror'.\n",
  migrate_option_table,
  NULL,
  "On any failure before the disks are handed over "
  "the guest goes on at the source, the destination\n"
  "QEMU is ended, and the mirrors are cancelled.  Ctrl-C does the same: exit status 6.  It is two\n"
  "processes: when one is killed the other one sees to it.\n\n"
  "Example:\n"
  "  nbdmirror migrate --source-qmp /run/vm1.qmp --dest-qmp /run/hostb-vm1.qmp \\\n"
  "      --memory-uri tcp:hostb:4444 \\\n"
  "      --disk /var/lib/nbdmirror/vm1.control=nbd://hostb:10809/mirror\n\n"
  "See nbdmirror-migrate(1).\n",
  run
};
