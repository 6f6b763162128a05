/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The window of requests in flight: far destinations get all of it, near ones only what they use.
 */

#include "config.h"

#include <string.h>

#include "tests/unit/unit.h"

#include "mirror/engine/window.h"

#define MS UINT64_C (1000000)

/* A window of a line that nobody has used yet. */
static void
init (struct window *w, unsigned short_max, unsigned max)
{
  static struct window_lowest lowest;

  memset (&lowest, 0, sizeof lowest);
  window_init (w, &lowest, short_max, max);
}

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

  init (&w, 16, 16);
  cr_assert_eq (w.depth, WINDOW_MIN);
  init (&w, 2, 2);
  cr_assert_eq (w.depth, 2, "never more than there are slots");
}

Test (window, grows_to_the_maximum_where_latency_does_not_depend_on_it)
{
  struct window w;
  uint64_t now = 0;

  init (&w, 16, 16);
  replies (&w, 300, 50 * MS, &now);
  cr_assert_eq (w.depth, 16);
  replies (&w, 300, 50 * MS, &now);
  cr_assert_eq (w.depth, 16, "and stays there");
}

Test (window, stays_small_where_requests_only_wait_for_each_other)
{
  struct window w;
  uint64_t now = 0;

  init (&w, 16, 16);
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

  init (&w, 16, 16);
  replies (&w, 300, 10 * MS, &now);
  cr_assert_eq (w.depth, 16);
  replies (&w, 300, 100 * MS, &now);
  cr_assert_leq (w.depth, 6);
}

Test (window, fills_a_long_line_within_a_few_round_trips)
{
  struct window w;
  uint64_t now = 0;

  init (&w, 16, 512);
  for (unsigned i = 0; i < 8; i++) /* each time what one round trip brings */
    for (unsigned n = w.depth; n > 0; n--)
      window_reply (&w, 50 * MS, w.depth, now += MS / 10);
  cr_assert_eq (w.depth, 512);
}

Test (window, begins_wider_over_a_long_line)
{
  struct window w;

  init (&w, 16, 512);
  window_expect (&w, MS);
  cr_assert_eq (w.depth, WINDOW_MIN);
  window_expect (&w, 5 * MS);
  cr_assert_eq (w.depth, WINDOW_MIN);
  window_expect (&w, 96 * MS);
  cr_assert_eq (w.depth, 32);
  init (&w, 16, 20);
  window_expect (&w, 96 * MS);
  cr_assert_eq (w.depth, 20);
}

Test (window, does_not_grow_where_it_is_not_filled)
{
  struct window w;
  uint64_t now = 0;

  init (&w, 16, 512);
  for (unsigned i = 0; i < 1000; i++)
    window_reply (&w, 50 * MS, 3, now += MS);
  cr_assert_leq (w.depth, 8);
}

Test (window, falls_to_what_a_long_line_holds_at_once)
{
  struct window w;
  uint64_t now = 0;

  init (&w, 16, 512);
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

  init (&w, 16, 512);
  for (unsigned i = 0; i < 100000; i++)
    window_reply (&w, MS / 10, w.depth, now += MS / 100);
  cr_assert_leq (w.depth, 16);
}

Test (window, forgets_a_path_that_was_faster)
{
  struct window w;
  uint64_t now = 0;

  init (&w, 16, 16);
  replies (&w, 100, 1 * MS, &now);
  replies (&w, 24000, 40 * MS, &now);
  cr_assert_eq (w.depth, 16, "40 ms is what it takes now, no queue");
}

Test (window, takes_a_latency_of_nothing)
{
  struct window w;
  uint64_t now = 0;

  init (&w, 16, 16);
  replies (&w, 1000, 0, &now);
  cr_assert_eq (w.depth, 16);
}

/* A copier that joins a line which others fill. */
Test (window, learns_of_the_lowest_latency_from_others)
{
  struct window_lowest lowest = { .period = 0 };
  struct window first, second;
  uint64_t now = 0;

  window_init (&first, &lowest, 16, 160);
  window_init (&second, &lowest, 16, 160);
  window_reply (&first, 50 * MS, 1, now += MS);
  for (unsigned i = 0; i < 200; i++)
    window_reply (&second, 500 * MS, window_depth (&second), now += MS);
  cr_assert_leq (window_depth (&second), WINDOW_MIN);
}

/* Its queue hides the lowest latency.  So for a moment there is less of it. */
Test (window, measures_the_lowest_latency_anew_on_a_full_line)
{
  struct window w;
  uint64_t now = 0;
  unsigned least = 1000;

  init (&w, 16, 160);
  for (unsigned i = 0; i < 2900; i++) {
    /* 50 ms, and a request of each 10 ms */
    unsigned n = window_depth (&w);
    least = now > 10000 * MS && n < least ? n : least;
    window_reply (&w, (n > 5 ? n * 10 : 50) * MS, n, now += 10 * MS);
    cr_assert_leq (n, 16, "after %u replies", i);
  }
  cr_assert_leq (least, 4);
  cr_assert_geq (window_depth (&w), 5);
}

static void
begin (struct windows *ws)
{
  static struct window_lowest lowest[2];

  memset (lowest, 0, sizeof lowest);
  windows_init (ws, lowest, 256 * 1024, 8 * 1024, 16, 160, 1024);
}

Test (windows, each_request_takes_its_part)
{
  struct windows ws;
  struct window_load l = { .nr_whole = 0 };

  begin (&ws);
  cr_assert_eq (windows_filled (&ws, &l), 0);
  windows_add (&ws, &l, 256 * 1024);
  cr_assert_float_eq (windows_filled (&ws, &l), 1.0 / WINDOW_MIN, 1e-9);
  windows_add (&ws, &l, UINT64_C (1) << 30); /* zeroes are no more than that */
  cr_assert_float_eq (windows_filled (&ws, &l), 2.0 / WINDOW_MIN, 1e-9);
  windows_add (&ws, &l, 4096);
  windows_add (&ws, &l, 0); /* a flush */
  windows_remove (&ws, &l, UINT64_C (1) << 30);
  windows_remove (&ws, &l, 256 * 1024);
  cr_assert_leq (windows_filled (&ws, &l), 2.0 / WINDOW_MIN);
  windows_remove (&ws, &l, 4096);
  windows_remove (&ws, &l, 0);
  cr_assert_eq (windows_filled (&ws, &l), 0);
}

Test (windows, scattered_blocks_begin_with_the_bytes_of_whole_requests)
{
  struct windows ws;
  struct window_load l = { .nr_whole = 0 };
  uint64_t now = 0;
  unsigned n = 0;

  begin (&ws);
  /* A line that holds two requests; each takes it 25 ms. */
  for (unsigned i = 0; i < 100; i++) {
    unsigned depth = window_depth (&ws.whole);
    windows_reply (&ws, 256 * 1024, (depth > 3 ? depth * 25 : 75) * MS, depth, now += 25 * MS);
  }
  while (windows_filled (&ws, &l) < 1) {
    windows_add (&ws, &l, 4096);
    n++;
  }
  cr_assert_geq (n, 64, "%u blocks", n);
  cr_assert_leq (n, 160, "%u blocks", n);
  /* What lies between says nothing about whole requests. */
  unsigned before = ws.whole.depth;
  for (unsigned i = 0; i < 100; i++)
    windows_reply (&ws, 16 * 1024, 50 * MS, before, now += 25 * MS);
  cr_assert_eq (ws.whole.depth, before);
}
