/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The coordinator of a hand-off.  All disks that it is given are handed over at one instant, or
 * none is.
 *
 *   1. create the decision word, choose the rollback token, connect to every disk's filter
 *   2. mirror-prepare on all at the same time: each copies and flushes while its guest runs; when
 *      the last one is armed, mirror-prepare-now on all: each holds its gate, drains, copies what
 * is left.  So no guest waits for what another disk has to do before its hold.
 *   3. all prepared: one compare-and-swap of the word to "commit"; this is the instant
 *   4. job-finalize on all: each filter fences its disk durably and says how long the pause was
 *
 * Whatever goes wrong before 3 turns the word to "abort" and releases every disk.  What goes wrong
 * after 3 is reported, and changes nothing: a filter that cannot be told obeys the word by itself.
 *
 * With `release` the disks are not handed over: at the commit each job ends, nothing is fenced, and
 * all guests go on.  So all copies stand at one instant.  A checkpoint can be added at the same
 * instant: it has the same decision word, is prepared when all disks are armed, and is made durable
 * after the guests go on.
 *
 * The folder:
 *
 *   coordinator.c  the steps
 *   disk.c         what is done to one disk
 *   checkpoint-disks.c
 *                  checkpoints at the same instant
 *   later.c        to finish a hand-off that another process prepared
 *   seal-disks.c   after the commit: seal the destinations
 *
 * It runs in whatever process hands disks over: `complete`, `migrate`, `evacuate-disk`, or a worker
 * (`mirror --on-ready complete`).  It only talks to control sockets, and uses nothing of mirror/job
 * or mirror/engine.  A coordinator belongs to one thread; for the length of a step it starts one
 * more thread for each disk.  There are no locks: what these threads share is the decision word.
 */

#ifndef NBDMIRROR_MIRROR_HANDOFF_COORDINATOR_H
#define NBDMIRROR_MIRROR_HANDOFF_COORDINATOR_H

#include <stdbool.h>

#include "control/decision.h"
#include "control/rollback-token.h"

#define HANDOFF_MIN_LEASE_MS 200
#define HANDOFF_LEASE_PER_DISK_MS 10
#define HANDOFF_TIMEOUT_MS 60000

struct coordinator_options {
  unsigned lease_ms;   /* how long each filter may hold its guest; 0: 2 × the largest
                          max-downtime-ms of the disks, at least HANDOFF_MIN_LEASE_MS, and
                          HANDOFF_LEASE_PER_DISK_MS for each disk but the first */
  const char *waiters; /* guest writes that wait at the commit: "error" or "keep"; NULL: "error" */
  const char *token;   /* rollback token to use; NULL: a random one */
  const char *successor; /* absolute path of the disk that takes this one's place on this host, for
                            the fence record; NULL: none.  Only with one disk. */
  bool guest_stopped; /* no guest writes any more: the disks need not be ready, if little is left,
                         and nothing is done in advance to shorten the hold */
  bool release;       /* at the commit every guest goes on where it is, see above */
  const char *checkpoint;   /* with `release`: its name, added to those disks that have a true in */
  const bool *checkpointed; /* (borrowed); NULL: none is added */
  unsigned timeout_ms;      /* for all of step 2; 0: HANDOFF_TIMEOUT_MS, and the lease */
  /* Called by coordinator_run() before step 2, may be NULL.  -1 with *ERROR (a text of base/text.h)
   * gives the hand-off up. */
  int (*before_hold) (void *opaque, char **error);
  void *opaque;
};

struct coordinator_result {
  bool committed;
  char token[ROLLBACK_TOKEN_MAX + 1]; /* set if committed */
  unsigned nr;
  double *downtime_ms; /* of each disk, -1 if its filter could not be asked; owned, may be NULL */
};

/* Hand over the disks of the NR CONTROLS.  Blocks; starts a thread for each disk meanwhile, so it
 * may be called from a thread of the caller's beside a running worker.
 *
 * 0: committed, and every filter said so.  -1 with *ERROR (for text_free()): look at
 * result->committed. If it is false no disk was fenced and every guest goes on; if it is true the
 * hand-off holds, and *ERROR tells which filter could not be asked.  *RESULT is filled in either
 * way; free it with coordinator_result_free(). */
int coordinator_run (char *const controls[], unsigned nr, const struct coordinator_options *opts,
                     struct coordinator_result *result, char **error);
int coordinator_result_init (struct coordinator_result *result, unsigned nr); /* -1: no memory */
void coordinator_result_free (struct coordinator_result *result);

/* ---- the same step by step, for a caller that has something to do in between --------------------
 *
 * A handoff belongs to one thread.  Functions that return int: 0, or -1 with *ERROR (for
 * text_free()).
 */

struct coordinator;

/* Step 1.  CONTROLS must outlive it. */
struct coordinator *coordinator_new (char *const controls[], unsigned nr,
                                     const struct coordinator_options *opts, char **error);
/* Undecided: the filters see the connections close, and decide "abort", unless it was kept. */
void coordinator_free (struct coordinator *c);

/* Step 2.  If it fails every disk was released, and it may be called again; *NOT_READY (may be
 * NULL) tells whether the reason was only that a job was not ready. */
int coordinator_prepare (struct coordinator *c, bool *not_ready, char **error);
/* Now it outlives this process; only a decision or the end of the lease ends it.  If it fails every
 * disk was released. */
int coordinator_keep (struct coordinator *c, char **error);
/* Step 3.  If it fails (a lease ended) every disk was released. */
int coordinator_commit (struct coordinator *c, char **error);
/* Step 4.  The commit stands, whatever it returns; *RESULT comes from coordinator_result_init(). */
int coordinator_finalize (struct coordinator *c, struct coordinator_result *result, char **error);
/* Give it up, unless it is committed.  Returns what the word says. */
enum decision_value coordinator_release (struct coordinator *c);

/* After step 4: make the checkpoints durable.  If it fails, disks whose UUID is not known have
 * none, as far as can be told. */
int coordinator_checkpoint_finish (struct coordinator *c, char **error);
/* The UUID of a disk's checkpoint, "" if it has none. */
const char *coordinator_checkpoint_uuid (const struct coordinator *c, unsigned disk);
/* NULL, or what went wrong with a disk in the last step. */
const char *coordinator_disk_fault (const struct coordinator *c, unsigned disk);

enum decision_value
coordinator_decided (const struct coordinator *c); /* any time: has a lease ended? */
const char *coordinator_token (const struct coordinator *c);
/* Is there a decision word?  After the servers of all disks of a hand-off were killed there is
 * none: nobody can tell then whether it was committed before. */
bool coordinator_has_word (const struct coordinator *c);
long long coordinator_generation (const struct coordinator *c, unsigned disk); /* 0: not prepared */

/* ---- what another process prepared (coordinator_keep(), or it was killed), later.c --------- */

enum handoff_found {
  HANDOFF_FOUND_NONE,      /* no disk of these takes part in one: released, or never begun */
  HANDOFF_FOUND_UNDECIDED, /* every disk is prepared: commit or release it */
  HANDOFF_FOUND_COMMITTED, /* decided: coordinator_finalize() finishes what is left to do, if all
                              disks take part in it */
  HANDOFF_FOUND_DONE,      /* committed, and every filter has recorded it */
  HANDOFF_FOUND_BROKEN, /* not all of them are prepared, none is committed: only to be released */
  HANDOFF_FOUND_ENDED   /* QEMU has all of them open by itself, and no worker is left: nothing
                           records whether they were committed before */
};

/* Look for the hand-off of these disks.  TOKEN, if not NULL, is its rollback token: another's is an
 * error, as are disks of different hand-offs.  *ERROR says for BROKEN which disk is missing; and
 * for COMMITTED, if it is set, which disk takes no part: that one's guest may run.  A disk that
 * does not answer within TIMEOUT_MS (0: as long as it takes by default) is an error.  NULL with
 * *ERROR: a disk cannot be asked.  (*ERROR is for text_free().) */
struct coordinator *coordinator_find (char *const controls[], unsigned nr, const char *token,
                                      unsigned timeout_ms, enum handoff_found *found, char **error);

#endif
