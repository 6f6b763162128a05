/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The latency of a write: what the destination takes, without what is our own queue.
 */

#include "config.h"

#include "tests/unit/unit.h"

#include "mirror/engine/latency.h"

#define MS UINT64_C (1000000)
#define KIB UINT64_C (1024)
#define MIB (UINT64_C (1) << 20)

static void
reply (struct latency *l, uint64_t took_ms, uint64_t bytes, bool pressed, uint64_t now_ms)
{
  const struct latency_reply r
      = { .took_ns = took_ms * MS, .queued = bytes, .delivered = bytes, .pressed = pressed };
  latency_add (l, &r, now_ms * MS);
}

Test (latency, unknown_at_first_and_without_data)
{
  struct latency l = { .low_end_ns = 0 };
  const struct latency_reply none = { .took_ns = 0, .queued = 1, .delivered = 1 };

  cr_assert_eq (latency_ns (&l), 0);
  latency_add (&l, &none, 1);
  cr_assert_eq (latency_ns (&l), 0);
}

Test (latency, a_server_that_takes_its_time)
{
  struct latency l = { .low_end_ns = 0 };

  reply (&l, 200, 16 * MIB, true, 1000); /* 80 MiB a second, by many at a time */
  cr_assert_eq (latency_ns (&l), 0, "that may be a thin line");
  reply (&l, 200, 4 * KIB, false, 2000);
  cr_assert_geq (latency_ns (&l), 199 * MS);
  cr_assert_leq (latency_ns (&l), 200 * MS);
}

Test (latency, a_thin_line_has_none)
{
  struct latency l = { .low_end_ns = 0 };

  for (unsigned i = 0; i < 100; i++) /* 1 MiB a second: each waits for those before it */
    reply (&l, 250 * (1 + i % 16), 256 * KIB * (1 + i % 16), true, 100 * i);
  cr_assert_eq (latency_ns (&l), 0);
}

/* A stall leaves one reply that stands out; shorter ones are mostly queue, and still tell. */
Test (latency, no_longer_than_the_shortest)
{
  struct latency l = { .low_end_ns = 0 };

  reply (&l, 1, 16 * KIB, true, 1000);
  reply (&l, 200, 32 * KIB, false, 1001);
  cr_assert_leq (latency_ns (&l), 1 * MS);
}

Test (latency, a_fast_server_is_found_again)
{
  struct latency l = { .low_end_ns = 0 };

  reply (&l, 500, 80 * MIB, true, 1000);
  reply (&l, 400, 4 * KIB, false, 2000);
  cr_assert_geq (latency_ns (&l), 399 * MS);
  reply (&l, 3, 4 * KIB, false, 2001);
  cr_assert_leq (latency_ns (&l), 3 * MS, "the lowest counts at once");
  reply (&l, 50, 4 * KIB, false, 8000);
  cr_assert_leq (latency_ns (&l), 3 * MS, "and is kept for a period");
  reply (&l, 50, 4 * KIB, false, 14000);
  cr_assert_geq (latency_ns (&l), 49 * MS, "but not for ever");
}

Test (latency, a_calm_guest_does_not_make_the_line_thin)
{
  struct latency l = { .low_end_ns = 0 };

  reply (&l, 200, 16 * MIB, true, 1000);
  for (uint64_t s = 2; s < 200; s++) /* 40 blocks in flight: 800 KiB a second */
    reply (&l, 200, 160 * KIB, false, s * 1000);
  cr_assert_geq (latency_ns (&l), 190 * MS);
  for (uint64_t s = 200; s < 230; s++) /* now it is known */
    reply (&l, 200, 160 * KIB, true, s * 1000);
  cr_assert_eq (latency_ns (&l), 0);
}

Test (latency, waiting_behind_others_can_be_told)
{
  struct latency l = { .low_end_ns = 0 };

  cr_assert_eq (latency_behind_ns (&l, 300 * MS, 1 * MIB), 300 * MS, "nothing is known");
  reply (&l, 100, 1 * MIB, true, 1000); /* 10 MiB a second */
  cr_assert_eq (latency_behind_ns (&l, 300 * MS, 0), 300 * MS);
  cr_assert_eq (latency_behind_ns (&l, 300 * MS, 1 * MIB), 200 * MS);
  cr_assert_eq (latency_behind_ns (&l, 300 * MS, 4 * MIB), 0);
  reply (&l, 50, 1 * MIB, true, 1100); /* it was faster than that */
  cr_assert_eq (latency_behind_ns (&l, 300 * MS, 1 * MIB), 250 * MS);
}
