/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the coordinator of a migration writes down for its guardian: facts that nobody can see from
 * outside once the coordinator was killed.
 *
 * The notes are one page of memory that both processes share.  Each is one atomic word, or a text
 * that is written once before its flag.  So a coordinator that is killed while it writes leaves
 * nothing half-written.  The guardian reads them only after the coordinator has ended.
 *
 * NOTES may be NULL in all functions that write: then there is no guardian, and nothing is done.
 */

#ifndef NBDMIRROR_CMD_MIGRATE_NOTES_H
#define NBDMIRROR_CMD_MIGRATE_NOTES_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <jansson.h>

#include "mirror/handoff/coordinator.h"

enum phase {
  PHASE_CHECK,  /* looking at both sides */
  PHASE_ADOPT,  /* --adopt: the disks are put onto the tracked path */
  PHASE_MIRROR, /* the disks are copied until all are ready */
  PHASE_MEMORY, /* the memory is copied, the disks are kept in step */
  PHASE_HOLD,   /* the guest is stopped; hold, drain, flush every disk */
  PHASE_SWITCH, /* the last of the memory and the devices */
  PHASE_COMMIT, /* every disk is fenced */
  PHASE_START,  /* the guest is started at the destination */
  PHASE_DONE,
  PHASE_BACK,   /* roll-back */
  PHASE_RETURN, /* --adopt: that is done, and the disks are taken off the tracked path */
  PHASE_FAILED,
  PHASES
};

struct notes;

/* For NR disks.  NULL with errno. */
struct notes *notes_create (unsigned nr);
void notes_free (struct notes *notes); /* NULL allowed */

/* ---- the coordinator writes ----------------------------------------------------------------- */

void notes_phase (struct notes *notes, enum phase phase);
/* The disks are handed over, with this rollback token. */
void notes_committed (struct notes *notes, const char *token);
/* `migrate` is about to be sent to the source; or false: it was refused. */
void notes_memory_begun (struct notes *notes, bool begun);
/* `cont` is about to be sent to the destination; or false: it certainly has not run. */
void notes_cont_sent (struct notes *notes, bool sent);
/* Is the destination's monitor a QEMU itself, and no tunnel to one? */
void notes_dest_direct (struct notes *notes, bool direct);
/* When the guest was stopped at the source, on the clock of clock_ns(); 0: it was not. */
void notes_stopped (struct notes *notes, uint64_t ns);
/* What these settings of the source QEMU were before; the first ones count.  NULL: unchanged. */
void notes_settings (struct notes *notes, json_t *capabilities, json_t *parameters);
/* The process that mirrors disk I, a child of the coordinator. */
void notes_worker (struct notes *notes, unsigned i, pid_t pid);
/* --on-abort-exec or --after-commit-exec is about to be run. */
void notes_hooked (struct notes *notes);
/* The end: the report is out, and STATUS is what to exit with. */
void notes_finished (struct notes *notes, int status);

/* ---- the guardian reads --------------------------------------------------------------------- */

/* What is known beyond what can be seen. */
struct known {
  enum phase phase;
  bool committed; /* handed over; in PHASE_BACK: and that was being taken back */
  bool memory_begun, cont_sent, dest_direct;
  uint64_t stopped_ns;
  char token[ROLLBACK_TOKEN_MAX + 1]; /* "" not handed over */
};

void notes_read (const struct notes *notes, struct known *known);
enum phase notes_read_phase (const struct notes *notes);
/* New references, or NULL. */
json_t *notes_read_capabilities (const struct notes *notes);
json_t *notes_read_parameters (const struct notes *notes);
pid_t notes_read_worker (const struct notes *notes, unsigned i); /* 0: none that is ours */
bool notes_read_hooked (const struct notes *notes);
bool notes_read_finished (const struct notes *notes, int *status);

#endif
