/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The bandwidth limit: over any span it lets through what the rate allows, and at most one request
 * and a short burst more.
 */

#include "config.h"

#include "tests/unit/unit.h"

#include "mirror/engine/rate.h"

#define MS UINT64_C (1000000)
#define SECOND (1000 * MS)
#define REQUEST (256u * 1024)
#define RATE (UINT64_C (100) << 20)

/* Send requests as fast as allowed from *NOW until END; returns the bytes. */
static uint64_t
send_until (struct rate_limit *r, uint64_t *now, uint64_t end)
{
  uint64_t sent = 0;
  for (;;) {
    uint64_t wait = rate_wait (r, *now);
    if (*now + wait >= end) {
      *now = end;
      return sent;
    }
    *now += wait;
    rate_take (r, REQUEST);
    sent += REQUEST;
  }
}

Test (rate, no_limit_never_waits)
{
  struct rate_limit r;
  rate_init (&r, 0, 5);
  for (unsigned i = 0; i < 1000; i++) {
    cr_assert_eq (rate_wait (&r, 5), 0);
    rate_take (&r, REQUEST);
  }
}

Test (rate, holds_over_long_spans_and_is_reached)
{
  struct rate_limit r;
  uint64_t now = 17 * SECOND;
  rate_init (&r, RATE, now);
  uint64_t sent = send_until (&r, &now, now + 10 * SECOND);
  cr_assert_leq (sent, 10 * RATE + RATE / 10 + REQUEST);
  cr_assert_geq (sent, 10 * RATE - REQUEST);
}

Test (rate, idle_time_is_not_made_up_for)
{
  struct rate_limit r;
  uint64_t now = 0;
  rate_init (&r, RATE, now);
  now = 60 * SECOND; /* a minute of silence */
  uint64_t sent = send_until (&r, &now, now + SECOND / 10);
  cr_assert_leq (sent, RATE / 10 + RATE / 10 + REQUEST);
}

Test (rate, every_window_is_limited_even_when_changed_every_10_ms)
{
  struct rate_limit r;
  uint64_t now = 0, allowed = 0, sent = 0;
  rate_init (&r, RATE, now);
  for (unsigned i = 0; i < 1000; i++) {
    uint64_t rate = i % 2 ? RATE : RATE / 10;
    rate_set (&r, rate, now);
    sent += send_until (&r, &now, now + 10 * MS);
    allowed += rate / 100;
  }
  cr_assert_leq (sent, allowed + RATE / 10 + REQUEST);
  cr_assert_geq (sent, allowed * 9 / 10);
}

Test (rate, turning_a_limit_on_starts_without_credit)
{
  struct rate_limit r;
  uint64_t now = 0;
  rate_init (&r, 0, now);
  now = SECOND;
  rate_set (&r, RATE, now);
  uint64_t sent = send_until (&r, &now, now + 10 * MS);
  cr_assert_leq (sent, RATE / 100 + REQUEST);
}

Test (rate, refund_lets_more_through)
{
  struct rate_limit r;
  rate_init (&r, RATE, 0);
  rate_take (&r, 4 * REQUEST);
  uint64_t before = rate_wait (&r, 0);
  rate_give (&r, 3 * REQUEST);
  uint64_t after = rate_wait (&r, 0);
  cr_assert_gt (after, 0);
  cr_assert_lt (after, before / 3);
}

Test (rate, a_clock_that_stands_still_gives_nothing)
{
  struct rate_limit r;
  rate_init (&r, RATE, SECOND);
  rate_take (&r, REQUEST);
  cr_assert_gt (rate_wait (&r, SECOND), 0);
  cr_assert_gt (rate_wait (&r, SECOND - 1), 0); /* nor one that goes back */
}
