/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The way back to the source.
 *
 *   1. The disks are released: the decision word that they share becomes "abort".  If it says
 *      "commit" already, and the guest was not started at the destination, the disks are rolled
 *      back with the token.
 *   2. Servers of adopted disks that were killed are started again: QEMU cannot be told anything
 *      while it waits for the guest's requests.  The memory migration is cancelled.
 *   3. The source VM is continued, if QEMU has not done so by itself.
 *   4. The destination QEMU is ended.
 *   5. The settings of the source QEMU are restored, the mirrors that we began are cancelled, and
 *      their destinations are given up.
 *   6. Disks that we have adopted are taken off the tracked path.
 *
 * Where our own `migrate` was never accepted, we have not stopped the source VM: it is neither
 * continued, nor is a migration cancelled, which is somebody else's.  The guest may even run at the
 * destination, after somebody else's migration: it is ended only if it waits for one.
 *
 * Steps 3 and 4 change places once `cont` may have been sent to the destination: the guest must not
 * run on both sides.  Before that nobody can start the destination.  Then the guest at the source
 * goes on first, and does not wait for a destination that may not answer.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "cmd/control-query.h"
#include "cmd/migrate/adopted.h"
#include "cmd/migrate/migrate.h"
#include "cmd/migrate/plan.h"
#include "control/name.h"

#define CANCEL_MS 20000 /* for QEMU to cancel a migration */
#define WAKE_MS 500     /* a cancelled migration that goes on so long is woken */
#define SWITCH_MS 1000  /* a switch that is under way for so long is cancelled after all */
#define RUN_MS 20000    /* for the source VM to run again */
#define END_MS 2000     /* for the destination QEMU to end */
#define POLL_MS 20

/* Takes ERROR, and frees it. */
static void
note_error (struct migrate *m, const char *what, char *error)
{
  journal_event (&m->journal, "roll-back-error",
                 json_pack ("{s:s, s:s}", "what", what, "error", error));
  text_free (error);
}

/* ---- the disks ------------------------------------------------------------------------------- */

static int
call_rollback (struct migrate *m, struct disk *d, char **class_, char **error)
{
  json_t *args
      = json_pack ("{s:s, s:b}", "rollback-token", m->result.token, "destination-stopped", 1);
  struct control_call call
      = { .command = "mirror-rollback", .args = args, .timeout_ms = QUERY_MS, .class_ = class_ };

  return control_client_call (d->client, &call, error);
}

/* The server may be another one than that of our connection: the one before was killed.  0, or -1
 * with *ERROR, and *CLASS_ if it was refused. */
static int
roll_back (struct migrate *m, struct disk *d, char **class_, char **error)
{
  for (int try = 0; try < 2; try++) {
    text_free (*error);
    *error = NULL;
    if (d->client == NULL)
      d->client = control_client_connect (d->control, QUERY_MS, error);
    if (d->client == NULL)
      return -1;
    if (call_rollback (m, d, class_, error) == 0)
      return 0;
    if (*class_ != NULL)
      return -1;
    control_client_free (d->client);
    d->client = NULL;
  }
  return -1;
}

/* Open the source's disks again although they were handed over: nothing ran at the destination. */
static bool
uncommit (struct migrate *m)
{
  bool all = true;

  for (unsigned i = 0; i < m->disks.nr; i++) {
    struct disk *d = &m->disks.disk[i];
    char *error = NULL, *class_ = NULL;

    if (control_is_of_qemu (d->control)) /* nothing but the stopped guest keeps it */
      continue;
    if (roll_back (m, d, &class_, &error) == 0
        || (class_ != NULL && strcmp (class_, "NotFenced") == 0))
      journal_rolled_back (&m->journal, "%s: handed back to the source", d->control);
    else {
      all = false;
      cmd_say ("%s: cannot be rolled back: %s", d->control, error);
    }
    text_free (error);
    text_free (class_);
  }
  if (all)
    m->committed = false;
  return all;
}

/* A disk in doubt that could not be released refuses its guest's writes. */
static bool
all_released (struct migrate *m)
{
  bool all = true;

  for (unsigned i = 0; m->recovering && i < m->disks.nr; i++) {
    const char *fault = coordinator_disk_fault (m->coordinator, i);

    if (fault == NULL)
      continue;
    cmd_say ("%s: its guest cannot write yet", fault);
    all = false;
  }
  return all;
}

static bool
free_disks (struct migrate *m)
{
  if (m->committed) {
    adopted_revive (m, false, true);
    return uncommit (m);
  }
  if (m->coordinator == NULL) {
    adopted_revive (m, false, false);
    return true;
  }
  if (coordinator_release (m->coordinator) == DECISION_COMMIT) /* nobody but us decides so */
    return false;
  adopted_revive (m, coordinator_decided (m->coordinator) == DECISION_ABORT, false);
  if (!all_released (m))
    return false;
  if (m->held)
    journal_rolled_back (&m->journal, "every disk was released");
  m->held = false;
  return true;
}

/* ---- the machines -----------------------------------------------------------------------------
 */

/* QEMU's thread may have been about to stop before the switch when it was told to cancel, and then
 * waits there for ever, with the guest stopped (seen with 7.2: migration_maybe_pause() looks at the
 * state, and waits even where it has changed since).  A thread that does not wait takes no notice.
 */
static void
wake_cancelled (struct migrate *m)
{
  CLEANUP_TEXT char *ignored = NULL;

  machine_call (&m->machines.source, "migrate-continue", json_pack ("{s:s}", "state", "cancelling"),
                NULL, NULL, &ignored);
}

/* Tell QEMU to cancel.  False: its monitor was lost before it answered. */
static bool
tell_to_cancel (struct migrate *m)
{
  bool refused;
  char *error = NULL;

  if (machine_call (&m->machines.source, "migrate_cancel", NULL, NULL, &refused, &error) == 0)
    return true;
  if (refused)
    note_error (m, "migrate_cancel", error);
  else
    text_free (error);
  return refused;
}

/* A monitor that does not answer is asked again: QEMU may wait for a disk's server that was only
 * just started again, and its migration would go on afterwards, with the guest stopped.  False: it
 * has not answered.
 *
 * While QEMU gives its disks up, in the state "device", it must not be cancelled: it may continue
 * the guest with disks that it has given up already, and aborts at the guest's first write (seen
 * with 7.2).  That is over in a moment.  Then the migration has failed, or it is completed, and
 * `cont` takes the disks back. */
static bool
cancel_memory (struct migrate *m)
{
  struct machine *source = &m->machines.source;
  uint64_t wake = 0, begun = clock_ms (), end = begun + CANCEL_MS;
  char status[32];
  bool told = false, unknown;

  for (;;) {
    machine_migration (source, status);
    unknown = status[0] == '\0' && !machine_is_dead (source);
    if ((!unknown && !migration_is_active (status)) || clock_ms () >= end)
      break;
    bool switching = strcmp (status, "device") == 0 && clock_ms () - begun < SWITCH_MS;
    if (!unknown && !told && !switching) {
      told = tell_to_cancel (m);
      wake = clock_ms () + WAKE_MS;
    } else if (strcmp (status, "cancelling") == 0 && clock_ms () >= wake) {
      wake_cancelled (m);
      wake = clock_ms () + WAKE_MS;
    }
    machines_wait (&m->machines, POLL_MS);
  }
  if (told)
    journal_rolled_back (&m->journal, "the migration of the memory is %s",
                         status[0] != '\0' ? status : "gone");
  return !unknown;
}

/* It must not run any more, ever.  One that only waits for a migration that will not come is ended
 * as well. */
static void
end_dest (struct migrate *m)
{
  uint64_t end = clock_ms () + END_MS;
  char *error = NULL;

  if (machine_is_dead (&m->machines.dest))
    return;
  if (machine_call (&m->machines.dest, "quit", NULL, NULL, NULL, &error) == 0)
    journal_rolled_back (&m->journal, "the destination QEMU was told to quit");
  else
    note_error (m, "quit", error);
  machine_close (&m->machines.dest);
  while (!machine_is_dead (&m->machines.dest) && clock_ms () < end)
    machines_wait (&m->machines, POLL_MS);
}

/* CANCELLED: the migration of the memory goes on no more.  Else it is cancelled as soon as the
 * monitor answers: it would stop the guest later on, with nobody there to continue it. */
static bool
run_source (struct migrate *m, bool cancelled)
{
  uint64_t end = clock_ms () + RUN_MS;
  char status[32];
  bool continued = false;

  do {
    char *error = NULL;

    machine_status (&m->machines.source, status);
    if (status[0] != '\0' && !cancelled) {
      cancelled = cancel_memory (m);
      if (cancelled)
        end = clock_ms () + RUN_MS;
      continue;
    }
    if (strcmp (status, "running") == 0) {
      journal_rolled_back (&m->journal, "the source VM runs");
      return true;
    }
    if (status[0] == '\0' && machine_is_dead (&m->machines.source))
      break;
    /* QEMU itself resumes it after a cancelled migration; `cont` in between is refused. */
    if (strcmp (status, "finish-migrate") != 0 || continued) {
      if (machine_call (&m->machines.source, "cont", NULL, NULL, NULL, &error) == -1)
        note_error (m, "cont", error);
    }
    continued = true;
    machines_wait (&m->machines, POLL_MS);
  } while (clock_ms () < end);
  cmd_say ("the source VM does not run: it is '%s'; when its monitor answers again, --recover "
           "tries once more",
           status[0] != '\0' ? status : "gone");
  return false;
}

/* Our migration of the memory was not begun.  True if the guest is at the source. */
static bool
leave_source (struct migrate *m)
{
  char status[32];

  machine_status (&m->machines.source, status);
  m->unresolved = status[0] == '\0';
  if (strcmp (status, "running") == 0) {
    journal_rolled_back (&m->journal, "the source VM runs");
    return true;
  }
  cmd_warning (
      "the source VM %s%s%s: it was not this migration that stopped it, so it is left alone",
      m->unresolved ? "cannot be asked" : "is '", status, m->unresolved ? "" : "'");
  return strcmp (status, "paused") == 0;
}

/* The same for the destination, which is ended where it only waits. */
static void
leave_dest (struct migrate *m)
{
  char status[32], migration[32];

  machine_status (&m->machines.dest, status);
  machine_migration (&m->machines.dest, migration);
  if (strcmp (status, "inmigrate") == 0 && strcmp (migration, "active") != 0)
    end_dest (m);
  else if (!machine_is_dead (&m->machines.dest))
    cmd_warning ("the destination VM %s%s%s: it is left alone",
                 status[0] == '\0' ? "cannot be asked" : "is '", status,
                 status[0] == '\0' ? "" : "'");
}

static bool
leave_machines (struct migrate *m)
{
  bool there = leave_source (m);

  leave_dest (m);
  return there;
}

/* The guest goes on at the source, and only there.  True if it does. */
static bool
back_to_source (struct migrate *m, bool dest_first)
{
  bool cancelled = cancel_memory (m);

  if (dest_first)
    end_dest (m);
  bool runs = run_source (m, cancelled);
  if (!dest_first)
    end_dest (m);
  m->unresolved = !runs;
  return runs;
}

void
migrate_restore_settings (struct migrate *m)
{
  char *error = NULL;

  if (m->machines.source.old_params != NULL
      && machine_call (&m->machines.source, "migrate-set-parameters",
                       json_incref (m->machines.source.old_params), NULL, NULL, &error)
             == -1)
    note_error (m, "migrate-set-parameters", error);
  error = NULL;
  if (m->machines.source.old_caps != NULL
      && machine_call (&m->machines.source, "migrate-set-capabilities",
                       json_pack ("{s:O}", "capabilities", m->machines.source.old_caps), NULL, NULL,
                       &error)
             == -1)
    note_error (m, "migrate-set-capabilities", error);
}

bool
migrate_back (struct migrate *m, bool dest_first)
{
  migrate_share_monitor (m);
  progress_phase (m, PHASE_BACK);
  if (!free_disks (m)) {
    m->unresolved = true;
    bool handed_over = m->committed || coordinator_decided (m->coordinator) == DECISION_COMMIT;
    cmd_say ("%s, so the source VM is not started: look at each disk's status, and see"
             " nbdmirror-migrate(1)",
             handed_over ? "the disks stay handed over" : "a disk could not be released");
    return false;
  }
  bool runs = m->memory_begun ? back_to_source (m, dest_first) : leave_machines (m);
  migrate_restore_settings (m);
  if (!m->options.keep_mirrors) {
    disks_cancel (&m->disks);
    if (runs && m->options.adopt != NULL) {
      progress_phase (m, PHASE_RETURN);
      adopted_end (m);
    }
  }
  progress_phase (m, PHASE_FAILED);
  return !m->unresolved;
}
