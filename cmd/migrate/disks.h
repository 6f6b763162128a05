/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The disks of a migration.  Each is mirrored by a worker process of its own, `nbdmirror mirror`.
 * Workers outlive us when we are killed, so that another try finds its jobs ready; a roll-back
 * cancels those that we began.
 *
 *   disks.c    their control sockets: how do they stand?
 *   workers.c  the processes
 *
 * Functions that return int: 0, or -1 with the reason in the journal.
 */

#ifndef NBDMIRROR_CMD_MIGRATE_DISKS_H
#define NBDMIRROR_CMD_MIGRATE_DISKS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <jansson.h>

#include "cmd/migrate/journal.h"
#include "cmd/migrate/options.h"
#include "control/client.h"
#include "mirror/endpoint/seal.h"

struct disk {
  const char *control, *dest;
  const struct disk_option *option; /* what the user said of it */
  bool verifying;                   /* its verification was begun */
  double mismatches;                /* what had been found before that */
  struct control_client *client;
  pid_t pid;  /* of the worker that we have started, else 0 */
  bool ours;  /* we start its job */
  bool ended; /* the worker has, with this status of waitpid() */
  int wait_status;
  json_t *status;              /* the last one, or NULL */
  double told_s;               /* the worker's "total-s" */
  bool has_told;               /* that has moved since we look */
  uint64_t heard_ms;           /* when that last moved, on the clock of clock_ms() */
  struct seal_connection seal; /* from the memory's migration on, to the destination */
};

struct disks {
  struct disk *disk;
  unsigned nr;
  struct journal *journal;
};

/* The options must outlive the disks.  -1: out of memory. */
int disks_init (struct disks *d, const struct migrate_options *o, struct journal *journal);
void disks_free (struct disks *d);

int disks_connect (struct disks *d);
/* Are the jobs such that a migration may begin?  Learns which are running already.  RESUME: it may
 * go on with one that was left over. */
int disks_check (struct disks *d, bool resume);
/* Has D, as it was last asked, a job that no worker is at work on? */
bool disk_has_left_over (const struct disk *d);
/* Look at all disks.  It fails if one cannot come to an end any more.  *READY: all are. */
int disks_look (struct disks *d, bool *ready);
/* Ask for every status, for the report. */
void disks_refresh (struct disks *d);
/* Ask; has one lost its destination? */
bool disks_degraded (struct disks *d);

/* ---- workers.c ------------------------------------------------------------------------------ */

#define WORKER_WORDS 32

/* The command line of D's worker: it prints its report, and ends with NULL.  Returns how many words
 * it has; there is room for four more. */
unsigned worker_words (const char *words[WORKER_WORDS], const struct disk *d,
                       const struct migrate_options *o);
/* The path of this program, into BUF.  NULL: it is not known. */
const char *worker_program (char *buf, size_t size);

/* Start the workers that are not there yet, with O's options.  Each goes to the notes. */
int disks_start (struct disks *d, const struct migrate_options *o, struct notes *notes);
/* Has D's worker ended before its time?  Then -1. */
int worker_look (struct journal *journal, struct disk *d);
/* A coordinator was killed: its workers, as the notes have them, are our children now. */
void disks_adopt (struct disks *d, const struct notes *notes);
/* End the jobs that we have begun, and give up what `receive` serves for them. */
void disks_cancel (struct disks *d);
/* Both processes of an earlier try were killed, and D's worker has gone on: end its job.  What does
 * not work is noticed by whoever needs the disk. */
void disk_end_job (struct journal *journal, struct disk *d);
/* Wait for our workers, which end by themselves after the commit. */
void disks_reap (struct disks *d);

#endif
