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
    window_reply (w, latency, *now += MS);
}

Test (window, begins_small)
{
  struct window w;

  window_init (&w, 16);
  cr_assert_eq (w.depth, WINDOW_MIN);
  window_init (&w, 2);
  cr_assert_eq (w.depth, 2, "never more than there are slots");
}

Test (window, grows_to_the_maximum_where_latency_does_not_depend_on_it)
{
  struct window w;
  uint64_t now = 0;

  window_init (&w, 16);
  replies (&w, 300, 50 * MS, &now);
  cr_assert_eq (w.depth, 16);
  replies (&w, 300, 50 * MS, &now);
  cr_assert_eq (w.depth, 16, "and stays there");
}

Test (window, stays_small_where_requests_only_wait_for_each_other)
{
  struct window w;
  uint64_t now = 0;

  window_init (&w, 16);
  window_reply (&w, 1 * MS, now); /* alone */
  for (unsigned i = 0; i < 1000; i++) {
    replies (&w, 1, w.depth * MS, &now);
    cr_assert_leq (w.depth, 6);
  }
}

Test (window, shrinks_when_a_queue_builds_up)
{
  struct window w;
  uint64_t now = 0;

  window_init (&w, 16);
  replies (&w, 300, 10 * MS, &now);
  cr_assert_eq (w.depth, 16);
  replies (&w, 300, 100 * MS, &now);
  cr_assert_leq (w.depth, 5);
}

Test (window, forgets_a_path_that_was_faster)
{
  struct window w;
  uint64_t now = 0;

  window_init (&w, 16);
  replies (&w, 100, 1 * MS, &now);
  replies (&w, 12000, 40 * MS, &now);
  cr_assert_eq (w.depth, 16, "40 ms is what it takes now, no queue");
}

Test (window, takes_a_latency_of_nothing)
{
  struct window w;
  uint64_t now = 0;

  window_init (&w, 16);
  replies (&w, 1000, 0, &now);
  cr_assert_eq (w.depth, 16);
}
