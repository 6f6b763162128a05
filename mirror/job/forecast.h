/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What a job is going to be like, from rates that were measured before it: the arithmetic of "Will
 * it converge?" in nbdmirror(1).  Pure.
 *
 * A long line costs each pass a round trip, and passes over blocks that lie apart may carry less
 * than the first one.
 *
 * It takes every write for one that turns a clean block dirty behind the cursor, so it tells the
 * most that is sent and the longest that it takes; guests that write to the same blocks again, or
 * ahead of the first pass, cost less.
 */

#ifndef NBDMIRROR_MIRROR_JOB_FORECAST_H
#define NBDMIRROR_MIRROR_JOB_FORECAST_H

#include "mirror/engine/engine.h"
#include "mirror/job/converge.h"

struct forecast_input {
  uint64_t disk_bytes, data_bytes; /* DATA: of the disk, what must be sent at least */
  double bandwidth, dirty_rate;    /* bytes a second */
  enum job_policy policy;
  double max_downtime_ms;
  double fixed_ms;           /* of the final pause: flush and round trips */
  double trip_ms;            /* one round trip */
  double scattered;          /* bytes a second of blocks that lie apart; 0: as much as BANDWIDTH */
  double max_write_delay_ms; /* how long a guest's write may wait */
};

struct forecast {
  bool converges;          /* without anything being done about it */
  bool ends;               /* under the policy */
  enum converge_gate gate; /* that the policy is going to need */
  unsigned passes;
  double seconds; /* until ready; < 0: it does not end */
  double sent_bytes;
  double pause_ms; /* if it is handed over then; < 0: not known */
};

/* What a pass over blocks of BLOCK_SIZE bytes that lie apart can carry at most, with as many
 * requests in flight as NR_COPIERS may have, each of which takes TRIP_MS: bytes a second; 0: no
 * limit but the line's. */
double forecast_scattered (uint32_t block_size, unsigned nr_copiers, enum engine_sync sync,
                           double trip_ms);

struct forecast forecast_make (const struct forecast_input *in);

#endif
