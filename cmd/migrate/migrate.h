/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror migrate: move a running VM, its memory and all its disks.  nbdmirror-migrate(1) tells
 * what it does, docs/design.md ("Moving a whole guest") why.
 *
 * The folder, each file standing on those below it:
 *
 *   migrate.c           the order of the steps
 *   guard.c  recover.c  a coordinator was killed: the process that notices, what it does then
 *   report.c            what is told at the end
 *   adopted.c           --adopt and --give-back: the disks are tracked only meanwhile
 *   check.c  dry-run.c  what is looked at before anything is begun, or instead of it
 *   steps.c  finish.c   mirror, memory, hold, switch, commit; then seal and start
 *   back.c              the way back to the source
 *   progress.c          the phase line
 *   machines.c machine.c peer.c   the two QEMUs, one QEMU's monitor, who listens there
 *   disks.c  workers.c  the disks, and the processes that mirror them
 *   plan.c              which side has to run, as a function of what is seen; pure
 *   journal.c           log, phases, reason of the failure
 *   notes.c             what the guardian has to know, in memory that both processes share
 *   options.c disk-option.c   the command line, and what it says of one disk
 *
 * There is one commit: the decision word of the hand-off (mirror/handoff/coordinator.h).  Before it
 * every failure leads back to the source, whose disks are then writable; after it to the
 * destination.  Nobody but us starts the guest at the destination, and we do it after the commit.
 * At the source QEMU itself resumes the guest when the memory migration fails, or we do.
 *
 * Processes: the guardian waits for the coordinator, its child, which does everything; each disk
 * has a worker, which is a child of the coordinator.  Threads: one, but for the calls to all disks
 * and all destinations at the commit.  Those threads share nothing; there are no locks.
 *
 * Functions that return int: 0, or -1 with the reason in the journal.
 */

#ifndef NBDMIRROR_CMD_MIGRATE_MIGRATE_H
#define NBDMIRROR_CMD_MIGRATE_MIGRATE_H

#include <stdbool.h>

#include "cmd/migrate/disks.h"
#include "cmd/migrate/journal.h"
#include "cmd/migrate/machines.h"
#include "cmd/migrate/notes.h"
#include "cmd/migrate/options.h"
#include "mirror/handoff/coordinator.h"

struct migrate {
  struct migrate_options options;
  struct machines machines;
  struct disks disks;
  struct journal journal;
  struct notes *notes; /* NULL: nobody looks after us */

  struct coordinator *coordinator; /* NULL before the hold is prepared */
  struct coordinator_result result;
  bool memory_begun; /* our `migrate` was accepted, or may have been */
  bool held, committed, cont_sent;
  bool shared; /* workers use the source's monitor as well */

  bool recovering;         /* this process finishes what another one has begun */
  bool unresolved;         /* nobody knows whether the guest runs */
  bool collected;          /* report_collect() was called */
  json_int_t memory_bytes; /* sent */
};

/* ---- check.c ---- */
int migrate_check_machines (struct migrate *m);
int migrate_check_disks (struct migrate *m); /* and what the machines are able to do */

/* ---- steps.c ---- */
int step_mirror (struct migrate *m);
int step_memory (struct migrate *m);
int step_hold (struct migrate *m);
int step_switch (struct migrate *m);
int step_commit (struct migrate *m);

/* ---- finish.c ---- */
/* While the guest still runs: what sealing the destinations will need.  It cannot fail. */
void finish_connect_seals (struct migrate *m);
/* Start the guest at the destination.  -1: m->cont_sent is false if it certainly has not run. */
int finish_start (struct migrate *m);
/* Seal every destination, then START; finalize every disk meanwhile.  Returns what START does. */
int finish_hand_over (struct migrate *m, int (*start) (struct migrate *m));

/* ---- back.c ---- */
/* Back to the source.  DEST_FIRST: the destination may run, so it is ended before the source is
 * started.  True unless it is not known where the guest is. */
bool migrate_back (struct migrate *m, bool dest_first);
/* The part of it that is left where nothing was begun: the source QEMU's settings as they were. */
void migrate_restore_settings (struct migrate *m);

/* ---- recover.c: exit statuses ---- */
/* --recover. */
int migrate_recover (struct migrate *m);
/* The guardian's, after a coordinator that DIED, in words.  Tries several times if it has to.
 * EXIT_STATUS is the one of a roll-back. */
int migrate_recover_guarded (struct migrate *m, const char *died, int exit_status);

/* ---- dry-run.c ---- */
/* --dry-run.  An exit status. */
int migrate_dry_run (struct migrate *m);

/* ---- migrate.c ---- */
/* From now on leave the source's monitor to their workers after each call, if they need it. */
void migrate_share_monitor (struct migrate *m);

/* ---- progress.c ---- */
/* A phase begins. */
void progress_phase (struct migrate *m, enum phase phase);
/* Show the phase line if it is time to.  Call it as often as you like. */
void progress_update (struct migrate *m);

/* ---- report.c ---- */
/* Ask both sides for the last figures. */
void report_collect (struct migrate *m);
void report_tell (struct migrate *m);

#endif
