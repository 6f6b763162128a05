/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The way back to the source, and finishing after a coordinator that was killed.
 *
 *   1. the disks are released: the word goes to "abort".  If it says "commit", and the guest was
 * not started at the destination, they are rolled back with the token.
 *   2. the memory migration is cancelled
 *   3. the source VM is continued, if QEMU has not done so by itself
 *   4. the destination QEMU is ended; before 3 if it was told to run, or may have been
 *   5. settings of the source QEMU are restored; mirrors that we began are cancelled, destinations
 * given up
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "cmd/migrate/migrate.h"
#include "cmd/control-query.h"
#include "mirror/endpoint/seal.h"

#define CANCEL_MS 20000 /* for QEMU to cancel a migration */
#define RUN_MS 20000    /* for the source VM to run again */
#define POLL_MS 20

static void
note_error (struct migrate *m, const char *what, char *error)
{
  log_event (
      m, "roll-back-error",
      json_pack ("{s:s, s:s}", "what", what, "error", error != NULL ? error : "out of memory"));
  free (error);
}

/* ---- the disks ------------------------------------------------------------------------------- */

static int
call_rollback (struct migrate *m, struct disk *d, char **class_, char **error)
{
  json_t *args
      = json_pack ("{s:s, s:b}", "rollback-token", m->result.token, "destination-stopped", 1);
  struct control_call call
      = { .command = "mirror-rollback", .args = args, .timeout_ms = JOB_CALL_MS, .class_ = class_ };

  return control_client_call (d->client, &call, error);
}

/* Open the source's disks again although they were handed over: nothing ran at the destination. */
static bool
uncommit (struct migrate *m)
{
  bool all = true;
  unsigned i;

  for (i = 0; i < m->nr; i++) {
    struct disk *d = &m->disks[i];
    char *error = NULL, *class_ = NULL;

    if (d->client == NULL)
      d->client = control_client_connect (d->control, JOB_CALL_MS, &error);
    free (error);
    error = NULL;
    if (d->client != NULL
        && (call_rollback (m, d, &class_, &error) == 0
            || (class_ != NULL && strcmp (class_, "NotFenced") == 0)))
      log_rolled_back (m, "%s: handed back to the source", d->control);
    else {
      all = false;
      cmd_error ("%s: cannot be rolled back: %s", d->control,
                 error != NULL ? error : "out of memory");
    }
    free (error);
    free (class_);
  }
  if (all)
    m->committed = false;
  return all;
}

static bool
free_disks (struct migrate *m)
{
  if (m->committed)
    return uncommit (m);
  if (m->coordinator == NULL)
    return true;
  if (coordinator_release (m->coordinator) == DECISION_COMMIT) /* nobody but us decides so */
    return false;
  if (m->held)
    log_rolled_back (m, "every disk was released");
  m->held = false;
  return true;
}

/* ---- the machines -----------------------------------------------------------------------------
 */

static void
cancel_memory (struct migrate *m)
{
  double end = migrate_now () + CANCEL_MS;
  char status[32];
  char *error = NULL;

  vm_migration (&m->source, status);
  if (!migration_is_active (status))
    return;
  if (vm_call (&m->source, "migrate_cancel", NULL, NULL, NULL, &error) == -1)
    note_error (m, "migrate_cancel", error);
  do {
    migrate_wait (m, POLL_MS);
    vm_migration (&m->source, status);
  } while (migration_is_active (status) && migrate_now () < end);
  log_rolled_back (m, "the migration of the memory is %s", status[0] != '\0' ? status : "gone");
}

/* It must not run any more, ever.  One that only waits for a migration that will not come is ended
 * as well. */
static void
end_dest (struct migrate *m)
{
  double end = migrate_now () + 2000;
  char *error = NULL;

  if (vm_is_dead (&m->dest))
    return;
  if (vm_call (&m->dest, "quit", NULL, NULL, NULL, &error) == 0)
    log_rolled_back (m, "the destination QEMU was told to quit");
  else
    note_error (m, "quit", error);
  vm_close (&m->dest);
  while (!vm_is_dead (&m->dest) && migrate_now () < end)
    migrate_wait (m, POLL_MS);
}

static bool
run_source (struct migrate *m)
{
  double end = migrate_now () + RUN_MS;
  char status[32];
  bool continued = false;

  do {
    char *error = NULL;

    vm_status (&m->source, status);
    if (strcmp (status, "running") == 0) {
      log_rolled_back (m, "the source VM runs");
      return true;
    }
    if (status[0] == '\0' && vm_is_dead (&m->source))
      break;
    /* QEMU itself resumes it after a cancelled migration; `cont` in between is refused. */
    if (strcmp (status, "finish-migrate") != 0 || continued) {
      if (vm_call (&m->source, "cont", NULL, NULL, NULL, &error) == -1)
        note_error (m, "cont", error);
    }
    continued = true;
    migrate_wait (m, POLL_MS);
  } while (migrate_now () < end);
  cmd_error ("the source VM does not run: it is '%s'; when its monitor answers again, --recover "
             "tries once more",
             status[0] != '\0' ? status : "gone");
  return false;
}

static void
restore_settings (struct migrate *m)
{
  char *error = NULL;

  if (m->source.old_params != NULL
      && vm_call (&m->source, "migrate-set-parameters", json_incref (m->source.old_params), NULL,
                  NULL, &error)
             == -1)
    note_error (m, "migrate-set-parameters", error);
  error = NULL;
  if (m->source.old_caps != NULL
      && vm_call (&m->source, "migrate-set-capabilities",
                  json_pack ("{s:O}", "capabilities", m->source.old_caps), NULL, NULL, &error)
             == -1)
    note_error (m, "migrate-set-capabilities", error);
}

bool
migrate_back (struct migrate *m)
{
  /* Once `cont` may have been sent the destination is ended before the source runs.  Before that
   * nobody can start it, and a guest that waits need not wait for a destination that does not
   * answer. */
  bool dest_first = m->committed || m->o.recover, runs;

  log_phase (m, PHASE_BACK);
  if (!free_disks (m)) {
    m->unresolved = true;
    cmd_error ("the disks stay handed over, so the source VM is not started: look at each disk's "
               "status, and see"
               " nbdmirror-migrate(1)");
    return false;
  }
  cancel_memory (m);
  if (dest_first)
    end_dest (m);
  runs = run_source (m);
  if (!dest_first)
    end_dest (m);
  m->unresolved = !runs;
  restore_settings (m);
  disks_cancel (m);
  log_phase (m, PHASE_FAILED);
  return runs;
}

/* ---- --recover ---------------------------------------------------------------------------------
 */

static int
start_unless_running (struct migrate *m)
{
  char status[32];

  vm_status (&m->dest, status);
  return strcmp (status, "running") == 0 ? 0 : step_start (m);
}

static int
recover_forward (struct migrate *m, bool decide)
{
  char *error = NULL;
  char status[32];

  if (decide && coordinator_commit (m->coordinator, &error) == -1) {
    cmd_error ("%s", error != NULL ? error : "out of memory");
    free (error);
    return EXIT_ERROR;
  }
  m->committed = true;
  strcpy (m->result.token, coordinator_token (m->coordinator));
  vm_status (&m->source, status);
  if (strcmp (status, "running") == 0
      && vm_call (&m->source, "stop", NULL, NULL, NULL, &error) == 0)
    log_rolled_back (m, "the source VM was stopped: its disks are handed over");
  free (error);
  if (migrate_after_commit (m, start_unless_running) == -1) {
    cmd_error ("%s", m->reason != NULL ? m->reason : "out of memory");
    return EXIT_ERROR;
  }
  log_phase (m, PHASE_DONE);
  return EXIT_DONE;
}

static int
recover_back (struct migrate *m, enum handoff_found found)
{
  m->held = found == HANDOFF_FOUND_UNDECIDED || found == HANDOFF_FOUND_BROKEN;
  m->committed = found == HANDOFF_FOUND_COMMITTED || found == HANDOFF_FOUND_DONE;
  if (m->committed) {
    const char *token = coordinator_token (m->coordinator);

    snprintf (m->result.token, sizeof m->result.token, "%s",
              token[0] != '\0' ? token : m->known.token);
    cmd_notice ("the destination has not run: taking the hand-over back");
  } else
    cmd_notice ("nothing was handed over: going back to the source");
  return migrate_back (m) ? EXIT_DONE : EXIT_ERROR;
}

static int
look_and_recover (struct migrate *m, enum handoff_found found)
{
  char source[32], migration[32], dest[32];
  enum plan plan;

  vm_status (&m->source, source);
  vm_migration (&m->source, migration);
  vm_status (&m->dest, dest);
  log_event (m, "recover",
             json_pack ("{s:i, s:s, s:s, s:s}", "disks", (int)found, "source", source, "migration",
                        migration, "destination", dest));
  plan = migrate_plan (found, coordinator_has_word (m->coordinator), source, migration, dest);
  if (m->died[0] != '\0')
    plan = migrate_plan_known (plan, found, &m->known, source, dest,
                               m->known.dest_direct && vm_is_dead (&m->dest));
  switch (plan) {
  case PLAN_NOTHING:
    if (strcmp (dest, "running") == 0) {
      m->committed = true;
      strcpy (m->result.token, coordinator_token (m->coordinator));
      m->phase = PHASE_DONE;
    }
    cmd_notice ("nothing to do: the guest runs at the %s",
                strcmp (dest, "running") == 0 ? "destination" : "source");
    return EXIT_DONE;
  case PLAN_FORWARD:
    cmd_notice ("the disks are handed over: going on to the destination");
    return recover_forward (m, found == HANDOFF_FOUND_UNDECIDED);
  case PLAN_BACK:
    return recover_back (m, found);
  default:
    cmd_error ("the disks are%s handed over, the source VM is '%s', the destination VM is '%s': see"
               " nbdmirror-migrate(1), FAILURES",
               found == HANDOFF_FOUND_COMMITTED || found == HANDOFF_FOUND_DONE ? "" : " not",
               source[0] != '\0' ? source : "gone", dest[0] != '\0' ? dest : "gone");
    return EXIT_ERROR;
  }
}

int
migrate_recover (struct migrate *m)
{
  enum handoff_found found;
  char *error = NULL;
  int status = EXIT_ERROR;

  m->coordinator = coordinator_find (m->controls, m->nr, NULL, 0, &found, &error);
  if (m->coordinator == NULL)
    cmd_error ("%s", error != NULL ? error : "out of memory");
  else if (coordinator_result_init (&m->result, m->nr) == -1)
    cmd_error ("out of memory");
  else
    status = look_and_recover (m, found);
  m->unresolved = status != EXIT_DONE;
  free (error);
  return status;
}
