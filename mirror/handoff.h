/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The coordinator of a hand-off: all disks given are handed over at one instant, or none is.
 *
 *   1. create the decision word, choose the rollback token, connect to every disk's filter
 *   2. mirror-prepare on all at the same time: each holds its gate, drains, copies the rest
 *   3. all prepared: one compare-and-swap of the word to "commit"; this is the instant
 *   4. job-finalize on all: each filter fences its disk durably and says how long the pause was
 *
 * Whatever goes wrong before 3 turns the word to "abort" and releases every disk.  What goes wrong after
 * 3 is reported, and changes nothing: filters that cannot be told obey the word by themselves.
 */

#ifndef NBDMIRROR_HANDOFF_H
#define NBDMIRROR_HANDOFF_H

#include <stdbool.h>

#define HANDOFF_TOKEN_MAX 64  /* characters */
#define HANDOFF_MIN_LEASE_MS 200
#define HANDOFF_TIMEOUT_MS 60000

struct handoff_options {
  unsigned lease_ms;   /* how long each filter may hold its guest; 0: 2 × the largest
                          max-downtime-ms of the disks, at least HANDOFF_MIN_LEASE_MS */
  const char *waiters; /* guest writes that wait at the commit: "error" or "keep"; NULL: "error" */
  const char *token;   /* rollback token to use; NULL: a random one */
  const char *successor; /* absolute path of the disk that takes this one's place on this host, for the fence
                            record; NULL: none.  Only with one disk. */
  unsigned timeout_ms; /* for all of step 2; 0: HANDOFF_TIMEOUT_MS */
};

struct handoff_result {
  bool committed;
  char token[HANDOFF_TOKEN_MAX + 1]; /* set if committed */
  unsigned nr;
  double *downtime_ms; /* of each disk, -1 if its filter could not be asked; owned, may be NULL */
};

/* Hand over the disks of the NR CONTROLS.  Blocks; starts a thread for each disk meanwhile, so it
 * may be called from a thread of the caller's beside a running worker.
 *
 * 0: committed, and every filter said so.  -1 with *ERROR (caller frees): look at result->committed.
 * If it is false no disk was fenced and every guest goes on; if it is true the hand-off holds, and *ERROR
 * tells which filter could not be asked.  *RESULT is filled in either way; free it with handoff_result_free(). */
int handoff_run (char *const controls[], unsigned nr, const struct handoff_options *opts,
                 struct handoff_result *result, char **error);
void handoff_result_free (struct handoff_result *result);

/* 1 to 64 characters of [A-Za-z0-9._-]? */
bool handoff_token_ok (const char *token);

#endif
