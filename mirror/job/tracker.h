/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Somebody other than our filter who knows what a guest changes, and who can stop the guest.  The
 * bits of such a job are private to the worker: a new worker begins with the whole disk.
 *
 * The order that keeps data safe: start() comes before the first block is read.  A change is told
 * by the first take() that begins after its write has returned; a read that began earlier may have
 * seen the old data, so the block is copied again (R2).  What take() has told is not told again.
 *
 * All functions are the job's thread's, and block for some seconds at most.  They return 0, or -1
 * with *ERROR (text_free()).
 */

#ifndef NBDMIRROR_MIRROR_JOB_TRACKER_H
#define NBDMIRROR_MIRROR_JOB_TRACKER_H

#include <stdbool.h>
#include <stdint.h>

typedef void tracker_mark (void *region, uint64_t offset, uint64_t length);

struct decision;

/* How to hold a guest. */
struct tracker_hold {
  uint64_t lease_ms;
  struct decision *decision; /* borrowed; NULL: the worker alone commits */
  bool stopped;              /* it is stopped already; if not, that is an error */
};

struct tracker {
  void *opaque;

  /* From now on changes are noted, in blocks of BLOCK_SIZE bytes or smaller ones. */
  int (*start) (void *opaque, uint64_t size, uint32_t block_size, char **error);

  /* Tell MARK what was changed since the last call, or since start().  After an error some of it
   * may be lost: the job cannot go on. */
  int (*take) (void *opaque, tracker_mark *mark, void *region, char **error);

  /* Stop the guest.  It goes on by itself when this process dies, or after the lease.  Where there
   * is a decision, that turns to "abort" before; and if it says "commit", the guest stays stopped.
   */
  int (*hold) (void *opaque, const struct tracker_hold *hold, char **error);

  /* While it is held, after the last take(): is the guest stopped, was nothing changed since, and
   * can nobody else write?  If not, that is an error. */
  int (*check) (void *opaque, char **error);

  /* Let the guest go on. */
  int (*release) (void *opaque, char **error);

  /* The guest is to stay stopped, for the destination.  -1: it has to be released; or the decision
   * says "commit", and the guest has run in spite of that. */
  int (*commit) (void *opaque, char **error);
};

#endif
