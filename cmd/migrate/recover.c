/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Finishing after a coordinator that was killed: look where things stand, and do what the plan
 * says.  The guardian does it at once, and several times if it has to; --recover is the same by
 * hand, once.
 */

#include "config.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "cmd/adopt/served.h"
#include "cmd/migrate/adopted.h"
#include "cmd/migrate/migrate.h"
#include "cmd/migrate/plan.h"
#include "control/name.h"

#define TRIES 6
#define TRIES_MS 120000 /* no further one after this */
#define PAUSE_MS 1000

/* Any other state than "paused" is one that a guest only has which has run. */
static int
start_unless_running (struct migrate *m)
{
  char status[32];

  machine_status (&m->machines.dest, status);
  if (strcmp (status, "running") == 0)
    return 0;
  if (strcmp (status, "paused") == 0)
    return finish_start (m);
  return journal_fail (&m->journal, EXIT_ERROR, "the destination VM is '%s' and not paused",
                       status[0] != '\0' ? status : "gone");
}

/* A disk that QEMU has open by itself keeps no token, but KNOWN, which the guardian has, may. */
static void
take_token (struct migrate *m, const struct known *known)
{
  const char *token = coordinator_token (m->coordinator);

  snprintf (m->result.token, sizeof m->result.token, "%s",
            token[0] == '\0' && known != NULL ? known->token : token);
}

static int
recover_forward (struct migrate *m, bool decide, const struct known *known)
{
  CLEANUP_TEXT char *error = NULL;

  if (decide && coordinator_commit (m->coordinator, &error) == -1) {
    cmd_say ("%s", error);
    return EXIT_ERROR;
  }
  m->committed = true;
  take_token (m, known);
  char status[32];
  machine_status (&m->machines.source, status);
  if (strcmp (status, "running") == 0
      && machine_call (&m->machines.source, "stop", NULL, NULL, NULL, &error) == 0)
    journal_rolled_back (&m->journal, "the source VM was stopped: its disks are handed over");
  if (finish_hand_over (m, start_unless_running) == -1) {
    cmd_say ("%s", m->journal.reason);
    return EXIT_ERROR;
  }
  progress_phase (m, PHASE_DONE);
  return EXIT_DONE;
}

/* KNOWN: what the guardian knows, or NULL. */
static int
recover_back (struct migrate *m, enum handoff_found found, const struct known *known)
{
  m->held = found == HANDOFF_FOUND_UNDECIDED || found == HANDOFF_FOUND_BROKEN;
  m->committed = found == HANDOFF_FOUND_COMMITTED || found == HANDOFF_FOUND_DONE;
  if (m->committed) {
    take_token (m, known);
    cmd_say ("the destination has not run: taking the hand-over back");
  } else
    cmd_say ("nothing was handed over: going back to the source");
  return migrate_back (m, true) ? EXIT_DONE : EXIT_ERROR;
}

/* One side runs. */
static int
nothing_to_do (struct migrate *m, bool dest_runs, const struct known *known)
{
  if (dest_runs) {
    m->committed = true;
    take_token (m, known);
    m->journal.phase = PHASE_DONE;
  } else
    migrate_restore_settings (m);
  cmd_say ("nothing to do: the guest runs at the %s", dest_runs ? "destination" : "source");
  return EXIT_DONE;
}

static int
look_and_recover (struct migrate *m, enum handoff_found found, bool mixed,
                  const struct known *known)
{
  const struct machine *its_dest = &m->machines.dest;
  char source[32], migration[32], dest[32], dest_migration[32] = "";

  machine_status (&m->machines.source, source);
  machine_migration (&m->machines.source, migration);
  machine_status (&m->machines.dest, dest);
  if (mixed)
    machine_migration (&m->machines.dest, dest_migration);
  journal_event (&m->journal, "recover",
                 json_pack ("{s:i, s:s, s:s, s:s}", "disks", (int)found, "source", source,
                            "migration", migration, "destination", dest));
  if (found == HANDOFF_FOUND_ENDED)
    found = migrate_plan_ended (known, source, migration, dest);
  const struct plan_sight seen = { .disks = found,
                                   .mixed = mixed,
                                   .word = coordinator_has_word (m->coordinator),
                                   .source = source,
                                   .migration = migration,
                                   .dest = dest,
                                   .dest_migration = dest_migration };
  enum plan plan = migrate_plan (&seen);
  if (known != NULL)
    plan = migrate_plan_known (plan, found, known, source, dest,
                               known->dest_direct && machine_is_dead (its_dest));
  switch (plan) {
  case PLAN_NOTHING:
    return nothing_to_do (m, strcmp (dest, "running") == 0, known);
  case PLAN_FORWARD:
    cmd_say ("the disks are handed over: going on to the destination");
    return recover_forward (m, found == HANDOFF_FOUND_UNDECIDED, known);
  case PLAN_BACK:
    return recover_back (m, found, known);
  default:
    cmd_say ("the disks are%s handed over, the source VM is '%s', the destination VM is '%s': see"
             " nbdmirror-migrate(1), FAILURES",
             found == HANDOFF_FOUND_COMMITTED || found == HANDOFF_FOUND_DONE ? "" : " not",
             source[0] != '\0' ? source : "gone", dest[0] != '\0' ? dest : "gone");
    if (m->options.give_back && strcmp (dest, "running") == 0)
      adopted_tell_give_back (m);
    return EXIT_ERROR;
  }
}

static int
recover (struct migrate *m, const struct known *known)
{
  CLEANUP_TEXT char *error = NULL;
  enum handoff_found found;
  int status = EXIT_ERROR;

  m->recovering = true;
  m->coordinator = coordinator_find (m->options.controls, m->disks.nr, NULL, 0, &found, &error);
  bool mixed = m->coordinator != NULL && found == HANDOFF_FOUND_COMMITTED && error != NULL;
  if (mixed)
    cmd_warning ("%s", error);
  if (m->coordinator == NULL)
    cmd_say ("%s", error);
  else if (coordinator_result_init (&m->result, m->disks.nr) == -1)
    cmd_say ("out of memory");
  else
    status = look_and_recover (m, found, mixed, known);
  m->unresolved = status != EXIT_DONE;
  return status;
}

/* The guest runs at the source, and every disk that was adopted is given back there.  Where an
 * earlier try was killed in between, some servers have ended already. */
static int
recover_adopted (struct migrate *m)
{
  char status[32];

  machine_status (&m->machines.source, status);
  if (strcmp (status, "running") != 0) {
    cmd_say ("the source VM is '%s', and a disk's server does not answer: see "
             "nbdmirror-migrate(1), FAILURES",
             status[0] != '\0' ? status : "gone");
    return EXIT_ERROR;
  }
  migrate_restore_settings (m);
  progress_phase (m, PHASE_RETURN);
  bool all = adopted_end (m);
  progress_phase (m, PHASE_FAILED);
  return all ? EXIT_DONE : EXIT_ERROR;
}

/* The guest is at the source.  A worker of a disk that QEMU has open by itself would go on for as
 * long as QEMU does, with its bitmaps and its export there. */
static void
end_jobs_in_qemu (struct migrate *m)
{
  for (unsigned i = 0; i < m->disks.nr; i++) {
    struct disk *d = &m->disks.disk[i];

    if (control_is_of_qemu (d->control) && !control_nobody_listens (d->control))
      disk_end_job (&m->journal, d);
  }
}

/* Does every disk's server answer? */
static bool
servers_answer (struct migrate *m)
{
  for (unsigned i = 0; i < m->disks.nr; i++)
    if (!served_is_there (m->disks.disk[i].control))
      return false;
  return true;
}

int
migrate_recover (struct migrate *m)
{
  bool adopted = m->options.adopt != NULL;

  m->memory_begun = true; /* nobody knows */
  adopted_revive (m, false, false);
  if (adopted && !servers_answer (m))
    return recover_adopted (m);
  int status = recover (m, NULL);
  if (status != EXIT_DONE)
    return status;
  if (m->journal.phase == PHASE_DONE)
    return m->options.give_back && !adopted_give_back (m) ? EXIT_ERROR : EXIT_DONE;
  if (m->options.keep_mirrors)
    return EXIT_DONE;
  end_jobs_in_qemu (m);
  return adopted && adopted_any (m) ? recover_adopted (m) : EXIT_DONE;
}

/* ---- the guardian --------------------------------------------------------------------------- */

/* What a try has learned is known to the next one.  As the coordinator would, it takes back a
 * hand-over whose guest could not be started and certainly has not run.  The coordinator may have
 * started it: then only a try of our own to start it, which notes what it finds, can tell so. */
static void
forget_try (struct migrate *m, struct known *known)
{
  struct known noted;

  notes_read (m->notes, &noted);
  known->cont_sent = noted.cont_sent;
  if (m->committed && !known->cont_sent) {
    known->phase = PHASE_BACK;
    known->committed = true;
  }
  coordinator_free (m->coordinator);
  m->coordinator = NULL;
  coordinator_result_free (&m->result);
  m->result = (struct coordinator_result){ .committed = false };
  m->held = m->committed = false;
}

static void
take_notes (struct migrate *m, struct known *known)
{
  notes_read (m->notes, known);
  m->journal.phase = known->phase;
  m->memory_begun = known->memory_begun;
  m->machines.source.stop_ns = known->stopped_ns;
  m->machines.source.old_caps = notes_read_capabilities (m->notes);
  m->machines.source.old_params = notes_read_parameters (m->notes);
  disks_adopt (&m->disks, m->notes);
}

/* With --adopt there are times at which a disk has no server, and needs none. */
static int
try_once (struct migrate *m, const struct known *known)
{
  bool adopted = m->options.adopt != NULL;

  if (adopted && (known->phase <= PHASE_ADOPT || known->phase == PHASE_RETURN))
    return recover_adopted (m);
  if (adopted && known->phase == PHASE_FAILED && !adopted_any (m))
    return EXIT_DONE;
  if (adopted && known->phase == PHASE_DONE && !servers_answer (m)) {
    m->committed = true;
    strcpy (m->result.token, known->token);
    m->journal.phase = PHASE_DONE;
    return EXIT_DONE;
  }
  adopted_revive (m, false, false);
  return recover (m, known);
}

int
migrate_recover_guarded (struct migrate *m, const char *died, int exit_status)
{
  uint64_t end = clock_ms () + TRIES_MS;
  struct known known;
  int try, status = EXIT_ERROR;

  take_notes (m, &known);
  journal_fail (&m->journal, exit_status, "%s", died);
  journal_break (&m->journal);
  cmd_warning ("%s: looking where things stand", died);
  for (try = 1; try <= TRIES; try++) {
    journal_event (&m->journal, "guardian", json_pack ("{s:i}", "try", try));
    forget_try (m, &known);
    status = try_once (m, &known);
    if (status == EXIT_DONE || try == TRIES || clock_ms () > end
        || atomic_load (m->machines.signal) != 0)
      break;
    cmd_say ("once more in %d ms", PAUSE_MS);
    machines_wait (&m->machines, PAUSE_MS);
  }
  if (status != EXIT_DONE) {
    cmd_say ("given up after %d tries: run this command with --recover, see nbdmirror-migrate(1)",
             try);
    return EXIT_ERROR;
  }
  return m->journal.phase == PHASE_DONE ? EXIT_DONE : exit_status;
}
