/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The file CONTROL.worker: how workers know of each other across a restart of the guest's server.
 *
 * While one server runs, its filter watches the worker's process and remembers what it had in
 * flight.  When the server ends, that knowledge ends with it, but the old worker may still live, or
 * its last requests may still be on their way to the destination (R12).  So a worker keeps this
 * file locked (flock) for as long as it lives; the kernel drops the lock with the process.  It
 * removes the file at a clean end: everything that it, or a worker before it, ever sent was
 * answered.  What the next worker finds:
 *
 *   no file              nothing is on its way
 *   locked               an old worker lives: refuse
 *   left, this filter's  it ended uncleanly; the filter knows what was in flight, and hands that on
 *   left, another's      the same, but nobody knows: every block goes into quarantine
 *
 * The file holds the worker's process id and the instance of the filter that it is attached to; it
 * changes to ours only when our region holds the quarantine.  Where the file cannot be had, for
 * whatever reason of the file system, the mirror goes on without it, with a warning.
 *
 * One thread, the job's.
 */

#ifndef NBDMIRROR_MIRROR_JOB_WORKER_LOCK_H
#define NBDMIRROR_MIRROR_JOB_WORKER_LOCK_H

#include <stdbool.h>
#include <sys/types.h>

#define WORKER_LOCK_INSTANCE 37 /* a UUID with its NUL */

struct worker_lock {
  char *path;                         /* owned; of the file */
  int fd;                             /* locked; -1: we have no lock */
  bool left_behind;                   /* a worker that did not end cleanly left the file */
  char left_by[WORKER_LOCK_INSTANCE]; /* the filter it was attached to; "": not known */
  pid_t left_by_pid;                  /* or who holds the lock; 0: not known */
};

enum worker_lock_result {
  WORKER_LOCK_HELD,  /* we have it */
  WORKER_LOCK_BUSY,  /* another process has it: left_by_pid */
  WORKER_LOCK_FAILED /* the file cannot be had: *ERROR (caller frees); go on without */
};

/* Lock the file beside the control socket CONTROL, waiting for up to TIMEOUT_MS.  Fills in L in
 * every case. */
enum worker_lock_result worker_lock_take (struct worker_lock *l, const char *control,
                                          int timeout_ms, char **error);

/* Must all blocks be put into quarantine, where the filter's instance is INSTANCE (may be NULL: not
 * known)? */
bool worker_lock_unknown_past (const struct worker_lock *l, const char *instance);

/* We are attached to the filter INSTANCE, and what an old worker may have left is in our region. 0,
 * or -1 with *ERROR (caller frees): the file still says what it said, which is safe. */
int worker_lock_attached (struct worker_lock *l, const char *instance, char **error);

/* Give it back.  NOTHING_LEFT: all that was ever sent was answered; then the file goes. */
void worker_lock_release (struct worker_lock *l, bool nothing_left);

#endif
