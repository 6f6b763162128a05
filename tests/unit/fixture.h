/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the unit tests of dirty-bitmap/ share: regions of a given number of blocks, a seeded random
 * number generator, and the check that bits, summaries and counters agree.
 */

#ifndef NBDMIRROR_TESTS_UNIT_FIXTURE_H
#define NBDMIRROR_TESTS_UNIT_FIXTURE_H

#include <inttypes.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/text.h"
#include "dirty-bitmap/claims.h"
#include "tests/unit/unit.h"

#define BLOCK 4096u

static const uint8_t fixture_uuid[16] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16 };

/* A region of NR_BLOCKS blocks of 4 KiB; the last one is short by 1 byte. */
static inline struct region *
fixture_region (uint64_t nr_blocks)
{
  struct region_geometry geo;
  char *error = NULL;

  cr_assert_eq (region_geometry_init (&geo, nr_blocks == 0 ? 0 : nr_blocks * BLOCK - 1, BLOCK), 0);
  cr_assert_eq (geo.nr_blocks, nr_blocks);
  struct region *r = region_create (&geo, fixture_uuid, &error);
  cr_assert_not_null (r, "region_create: %s", error != NULL ? error : "?");
  return r;
}

static inline struct region *
fixture_map (int fd)
{
  char *error = NULL;
  struct region *r = region_map (fd, &error);

  cr_assert_not_null (r, "region_map: %s", error != NULL ? error : "?");
  return r;
}

/* xorshift64*: each thread and process has its own state, seeded with anything but 0. */
static inline uint64_t
fixture_random (uint64_t *state)
{
  *state ^= *state >> 12;
  *state ^= *state << 25;
  *state ^= *state >> 27;
  return *state * UINT64_C (2685821657736338717);
}

/* Ends loops that race with other threads after 3 s from *START, which is 0 at the first call:
 * where the processors are shared, each round may cost a whole time slice. */
static inline bool
fixture_late (uint64_t *start_ms)
{
  uint64_t now = clock_ms ();

  if (*start_ms == 0)
    *start_ms = now;
  return now > *start_ms + 2 * MS_PER_S;
}

static inline _Atomic uint64_t *
fixture_words (const struct region *r, enum region_array a)
{
  return (_Atomic uint64_t *)((char *)r->hdr + r->geo.array_offset[a]);
}

static inline _Atomic uint64_t *
fixture_summary (const struct region *r, enum region_array a)
{
  return (_Atomic uint64_t *)((char *)r->hdr + r->geo.summary_offset[a]);
}

/* With nobody else at work: the counter is the number of bits, every non-empty word has its summary
 * bit, nothing is set behind the last block. */
static inline void
fixture_check (const struct region *r, enum region_array a)
{
  uint64_t n = 0;

  for (uint64_t w = 0; w < r->geo.nr_words; w++) {
    uint64_t v = atomic_load (&fixture_words (r, a)[w]);

    n += (uint64_t)__builtin_popcountll (v);
    if (v != 0)
      cr_assert (atomic_load (&fixture_summary (r, a)[w / 64]) >> (w % 64) & 1,
                 "word %" PRIu64 " of array %d is not in the summary", w, a);
    if (w == r->geo.nr_words - 1 && r->geo.nr_blocks % 64 != 0)
      cr_assert_eq (v >> (r->geo.nr_blocks % 64), 0, "bits behind the last block");
  }
  cr_assert_eq (atomic_load (&r->hdr->count[a]), (int64_t)n,
                "array %d: counter %" PRId64 ", bits %" PRIu64, a, atomic_load (&r->hdr->count[a]),
                n);
}

#endif
