/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * How strongly to compress.  Pure: times and figures come from the caller, who serialises access.
 *
 * Compression helps where the line is the slowest part, and harms where the processor is.  Nobody
 * can know beforehand, and it changes.  So the rate at which data arrive at the destination is
 * measured in windows, and another level is tried where a simple model promises more:
 *
 *   rate of a level = the lower of  what the compressor's threads do at that level
 *                              and  what the line has moved / what remains after compression
 *
 *   PLAIN, or a level ──(promised)──> on trial ──(measured: better)──> stays
 *                 ^                       └──(not better)─┐
 *                 └───────────────────────────────────────┘ and the next trial waits twice as long
 *
 * For the model, a few writes in each window are compressed at the next level.  A lower level stays
 * already if it is as good, since it costs less.  Writes that were on their way when the level
 * changed say nothing about it: each write bears the number of its window (its tag).
 *
 * A window in which nothing was in flight for a moment is not judged: then the line is not full,
 * and the level stays.
 */

#ifndef NBDMIRROR_COMPRESS_LEVEL_H
#define NBDMIRROR_COMPRESS_LEVEL_H

#include <stdbool.h>
#include <stdint.h>

#define LEVEL_STEPS 5 /* plain, 1, 3, 6, 9 */
#define LEVEL_MAX 9

/* What compression at one level costs and brings; older figures fade. */
struct level_cost {
  double content, packed; /* bytes */
  double seconds;         /* of one thread */
};

struct level {
  unsigned at;  /* step in use; 0: plain */
  unsigned top; /* highest one allowed */
  unsigned nr_threads;
  struct level_cost cost[LEVEL_STEPS];
  uint64_t sampled_ns, sample_took_ns;

  uint32_t tag;
  uint64_t begun_ns; /* of the window; 0: it begins with the next reply */
  double content, wire;
  unsigned replies;
  bool idle; /* nothing was in flight */

  bool trying;
  unsigned before;
  double rate_before;
  uint64_t next_try_ns, patience_ns, recheck_ns;
};

/* Begin with no compression.  MAX is zstd's level, 1 to LEVEL_MAX; lower steps only are used. */
void level_init (struct level *l, int max, unsigned nr_threads, uint64_t now_ns);

/* zstd's level for a write that is sent now, 0 for plain; *TAG is for level_replied(). */
int level_next (struct level *l, uint64_t now_ns, uint32_t *tag);

/* A write of CONTENT bytes was compressed at zstd's LEVEL to PACKED bytes, in NS of one thread. */
void level_compressed (struct level *l, int level, uint64_t content, uint64_t packed, uint64_t ns);

/* The destination has got a write of CONTENT bytes that took WIRE bytes of the line. */
void level_replied (struct level *l, uint32_t tag, uint64_t content, uint64_t wire,
                    uint64_t now_ns);

/* No write is in flight. */
void level_idle (struct level *l);

#endif
