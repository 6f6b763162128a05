/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The window of requests in flight: far destinations get all of it, near ones only what they use.
 */

#include "config.h"

#include "tests/unit/unit.h"

#include "mirror/engine/window.h"

#define MS UINT64_C (1000000)

/* N replies of LATENCY each, one every millisecond from *NOW on. */
static void
replies (struct window *w, unsigned n, uint64_t latency, uint64_t *now)
{
  while (n-- > 0)
    window_reply (w, latency, w->depth, *now += MS);
}

Test (window, begins_small)
{
  struct window w;

  window_init (&w, 16, 16);
  cr_assert_eq (w.depth, WINDOW_MIN);
  window_init (&w, 2, 2);
  cr_assert_eq (w.depth, 2, "never more than there are slots");
}

Test (window, grows_to_the_maximum_where_latency_does_not_depend_on_it)
{
  struct window w;
  uint64_t now = 0;

  window_init (&w, 16, 16);
  replies (&w, 300, 50 * MS, &now);
  cr_assert_eq (w.depth, 16);
  replies (&w, 300, 50 * MS, &now);
  cr_assert_eq (w.depth, 16, "and stays there");
}

Test (window, stays_small_where_requests_only_wait_for_each_other)
{
  struct window w;
  uint64_t now = 0;

  window_init (&w, 16, 16);
  window_reply (&w, 1 * MS, 1, now); /* alone */
  for (unsigned i = 0; i < 1000; i++) {
    replies (&w, 1, w.depth * MS, &now);
    cr_assert_leq (w.depth, 6);
  }
}

Test (window, shrinks_when_a_queue_builds_up)
{
  struct window w;
  uint64_t now = 0;

  window_init (&w, 16, 16);
  replies (&w, 300, 10 * MS, &now);
  cr_assert_eq (w.depth, 16);
  replies (&w, 300, 100 * MS, &now);
  cr_assert_leq (w.depth, 6);
}

Test (window, fills_a_long_line_within_a_few_round_trips)
{
  struct window w;
  uint64_t now = 0;

  window_init (&w, 16, 512);
  for (unsigned i = 0; i < 8; i++) /* each time what one round trip brings */
    for (unsigned n = w.depth; n > 0; n--)
      window_reply (&w, 50 * MS, w.depth, now += MS / 10);
  cr_assert_eq (w.depth, 512);
}

Test (window, begins_wider_over_a_long_line)
{
  struct window w;

  window_init (&w, 16, 512);
  window_expect (&w, MS);
  cr_assert_eq (w.depth, WINDOW_MIN);
  window_expect (&w, 5 * MS);
  cr_assert_eq (w.depth, WINDOW_MIN);
  window_expect (&w, 96 * MS);
  cr_assert_eq (w.depth, 32);
  window_init (&w, 16, 20);
  window_expect (&w, 96 * MS);
  cr_assert_eq (w.depth, 20);
}

Test (window, does_not_grow_where_it_is_not_filled)
{
  struct window w;
  uint64_t now = 0;

  window_init (&w, 16, 512);
  for (unsigned i = 0; i < 1000; i++)
    window_reply (&w, 50 * MS, 3, now += MS);
  cr_assert_leq (w.depth, 8);
}

Test (window, falls_to_what_a_long_line_holds_at_once)
{
  struct window w;
  uint64_t now = 0;

  window_init (&w, 16, 512);
  for (unsigned i = 0; i < 2000; i++)
    window_reply (&w, 50 * MS, w.depth, now += MS);
  cr_assert_eq (w.depth, 512);
  /* The server takes 16 at a time: the others wait. */
  unsigned depth = w.depth;
  for (unsigned i = 0; i < depth; i++)
    window_reply (&w, 50 * MS * depth / 16, depth, now += MS);
  cr_assert_leq (w.depth, 32);
  cr_assert_geq (w.depth, 16);
  for (unsigned i = 0; i < 1000; i++) {
    window_reply (&w, 50 * MS * (w.depth > 16 ? w.depth : 16) / 16, w.depth, now += MS);
    cr_assert_leq (w.depth, 64, "it grows to %u again", w.depth);
    cr_assert_geq (w.depth, 16);
  }
}

Test (window, is_left_small_where_the_line_is_short)
{
  struct window w;
  uint64_t now = 0;

  window_init (&w, 16, 512);
  for (unsigned i = 0; i < 100000; i++)
    window_reply (&w, MS / 10, w.depth, now += MS / 100);
  cr_assert_leq (w.depth, 16);
}

Test (window, forgets_a_path_that_was_faster)
{
  struct window w;
  uint64_t now = 0;

  window_init (&w, 16, 16);
  replies (&w, 100, 1 * MS, &now);
  replies (&w, 12000, 40 * MS, &now);
  cr_assert_eq (w.depth, 16, "40 ms is what it takes now, no queue");
}

Test (window, takes_a_latency_of_nothing)
{
  struct window w;
  uint64_t now = 0;

  window_init (&w, 16, 16);
  replies (&w, 1000, 0, &now);
  cr_assert_eq (w.depth, 16);
}
