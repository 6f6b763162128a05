/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Verification of a live copy: source and destination are compared block by block while the guest
 * writes and the job goes on.
 *
 * A block counts as verified when it was left alone while both sides were looked at (untouched.h),
 * and they are equal.  A block that was not is looked at again later, in rounds, until several
 * rounds have verified little more.  What the guest rewrites all the time may never be found at
 * rest; it is copied anyway.
 *
 * A difference is one only if it lasts: the block was left alone from before both sides were read
 * until the filter's count of mutations in flight was seen at 0.  So no write of the guest's that
 * is on its way can look like one.  Where that count is never 0 for 30 s, a block that was left
 * alone for so long counts as different too.  Such a block is made dirty, so that it is copied
 * again.
 *
 * It is done by a thread of its own, with a channel to the source and its own connection to the
 * destination: to the export of digests if there is one, else blocks are read.  What goes over that
 * connection is under the job's bandwidth limit.
 *
 * All functions are for the job's thread.
 */

#ifndef NBDMIRROR_MIRROR_JOB_LIVE_VERIFY_H
#define NBDMIRROR_MIRROR_JOB_LIVE_VERIFY_H

#include <stdbool.h>
#include <stdint.h>

#include "mirror/endpoint/endpoint.h"
#include "mirror/engine/engine.h"

struct live_verify;

enum live_verify_state { LIVE_VERIFY_RUNNING, LIVE_VERIFY_DONE, LIVE_VERIFY_FAILED };

struct live_verify_view {
  enum live_verify_state state;
  uint64_t verified_bytes;
  uint64_t unsettled_bytes; /* never found at rest; final once DONE */
  uint64_t mismatches;      /* blocks */
  uint64_t offset;          /* of the first one found, bytes */
  bool wants_quiet;         /* it waits for live_verify_quiet() */
  bool digests;             /* the destination serves them */
  const char *error;        /* FAILED; lives as long as the verification */
};

/* Begin.  ENGINE, SOURCE and the words of DEST are borrowed until live_verify_end().  Does not
 * block: a destination that cannot be reached makes it fail later.  NULL with *ERROR (text_free()).
 */
struct live_verify *live_verify_start (struct engine *engine, struct endpoint *source,
                                       char *const *dest, unsigned nr_dest,
                                       const struct endpoint_options *options, char **error);
struct live_verify_view live_verify_look (struct live_verify *v);
/* The filter was asked at SINCE_NS (clock_ns()), or later, and no mutation was in flight. */
void live_verify_quiet (struct live_verify *v, uint64_t since_ns);
/* No block is made dirty any more after this call, and the verification fails with WHY. */
void live_verify_stop (struct live_verify *v, const char *why);
/* Stop it, wait for its thread for at most 2 s, and free.  False if the thread still waits for an
 * answer: then it goes on using the engine and the source.  NULL is allowed. */
bool live_verify_end (struct live_verify *v);

#endif
