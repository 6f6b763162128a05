/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The order of copying: ascending, merged up to the limit, never a block twice at a time,
 * quarantine apart, and block status used only where it pays.
 */

#include "config.h"

#include <stdlib.h>

#include "tests/unit/unit.h"

#include "mirror/engine/pass.h"

#define BLOCK 4096u
#define BLOCKS 10000u
#define DISK ((uint64_t)BLOCKS * BLOCK - 100) /* an odd tail */

static struct region *r;
static struct pass p;
static const struct pass_options plain
    = { .max_data = 64, .max_zero = 4096, .quarantine_ready = true };
static const struct pass_options asking = {
  .max_data = 64, .max_zero = 4096, .max_ask = 8192, .min_ask = 64, .quarantine_ready = true
};

/* Each test begins with it (unit.h has no fixtures). */
static void
setup (void)
{
  static const uint8_t uuid[16];
  struct region_geometry geo;
  char *error = NULL;
  region_free (r);
  cr_assert_eq (region_geometry_init (&geo, DISK, BLOCK), 0);
  r = region_create (&geo, uuid, &error);
  cr_assert_not_null (r, "%s", error);
  pass_init (&p);
}

static void
expect (const struct pass_options *o, enum pass_kind kind, uint64_t first, uint64_t count)
{
  uint64_t f = 0, n = 0;
  enum pass_kind k = pass_next (&p, r, o, &f, &n);
  cr_assert_eq (k, kind, "kind %d instead of %d", k, kind);
  if (kind != PASS_END) {
    cr_assert_eq (f, first, "first %lu instead of %lu", (unsigned long)f, (unsigned long)first);
    cr_assert_eq (n, count, "count %lu instead of %lu", (unsigned long)n, (unsigned long)count);
  }
}

Test (pass, busy_and_dirty)
{
  setup ();
  cr_assert_not (pass_busy_dirty (&p, r), "nothing is busy");
  cr_assert (pass_busy_add (&p, 10, 4));
  cr_assert (pass_busy_add (&p, 200, 1));
  bitmap_set (r, REGION_DIRTY, 9, 1);
  bitmap_set (r, REGION_DIRTY, 14, 100);
  bitmap_set (r, REGION_DIRTY, 201, 1);
  cr_assert_not (pass_busy_dirty (&p, r), "these lie beside what is busy");
  bitmap_set (r, REGION_DIRTY, 13, 1);
  cr_assert (pass_busy_dirty (&p, r));
  pass_busy_remove (&p, 10);
  cr_assert_not (pass_busy_dirty (&p, r));
}

Test (pass, ascending_merged_and_cut)
{
  setup ();
  expect (&plain, PASS_END, 0, 0);
  bitmap_set (r, REGION_DIRTY, 5, 3);
  bitmap_set (r, REGION_DIRTY, 100, 200);
  bitmap_set (r, REGION_DIRTY, BLOCKS - 1, 1);
  expect (&plain, PASS_DATA, 5, 3);
  p.cursor = 8;
  expect (&plain, PASS_DATA, 100, 64);
  p.cursor = 164;
  expect (&plain, PASS_DATA, 164, 64);
  p.cursor = 300;
  expect (&plain, PASS_DATA, BLOCKS - 1, 1);
  p.cursor = BLOCKS;
  expect (&plain, PASS_END, 0, 0);
}

Test (pass, what_turns_dirty_behind_the_cursor_waits)
{
  setup ();
  p.cursor = 50;
  bitmap_set (r, REGION_DIRTY, 10, 1);
  expect (&plain, PASS_END, 0, 0);
  pass_restart (&p);
  expect (&plain, PASS_DATA, 10, 1);
}

Test (pass, busy_blocks_are_never_given_out_again)
{
  setup ();
  bitmap_set (r, REGION_DIRTY, 0, 64);
  cr_assert (pass_busy_add (&p, 0, 4));
  cr_assert (pass_busy_add (&p, 20, 4));
  expect (&plain, PASS_DATA, 4, 16);
  p.cursor = 20;
  expect (&plain, PASS_DATA, 24, 40);
  cr_assert (pass_busy_add (&p, 24, 40));
  expect (&plain, PASS_END, 0, 0);
  pass_busy_remove (&p, 20);
  expect (&plain, PASS_DATA, 20, 4);
}

Test (pass, the_busy_table_is_bounded)
{
  setup ();
  for (unsigned i = 0; i < PASS_MAX_BUSY; i++)
    cr_assert (pass_busy_add (&p, i, 1));
  cr_assert_not (pass_busy_add (&p, PASS_MAX_BUSY, 1));
}

Test (pass, quarantine_waits_and_then_is_verified_apart_from_the_rest)
{
  setup ();
  struct pass_options waiting = plain;
  waiting.quarantine_ready = false;
  bitmap_set (r, REGION_DIRTY, 10, 20);
  bitmap_set (r, REGION_QUARANTINE, 15, 5);
  expect (&waiting, PASS_DATA, 10, 5);
  p.cursor = 15;
  expect (&waiting, PASS_DATA, 20, 10);
  expect (&plain, PASS_VERIFY, 15, 5);
  p.cursor = 20;
  expect (&plain, PASS_DATA, 20, 10);
}

/* A copier that cannot read back now waits in front of a block in quarantine.  Behind it a busy
 * guest always leaves something else to copy, so each pass would verify only a few blocks. */
Test (pass, what_is_to_be_verified_is_not_gone_past)
{
  setup ();
  struct pass_options full = plain;
  uint64_t first, count;
  full.verify_full = true;
  bitmap_set (r, REGION_DIRTY, 10, 20);
  bitmap_set (r, REGION_QUARANTINE, 15, 5);
  expect (&full, PASS_DATA, 10, 5);
  p.cursor = 15;
  cr_assert_eq (pass_next (&p, r, &full, &first, &count), PASS_WAIT);
  expect (&plain, PASS_VERIFY, 15, 5);
  cr_assert (pass_busy_add (&p, 15, 5)); /* another copier has it */
  expect (&full, PASS_DATA, 20, 10);
  full.quarantine_ready = false; /* nobody waits for the grace time */
  pass_busy_remove (&p, 15);
  expect (&full, PASS_DATA, 20, 10);
}

Test (pass, only_long_runs_without_a_hint_are_asked_about)
{
  setup ();
  bitmap_set (r, REGION_DIRTY, 0, 63);
  expect (&asking, PASS_DATA, 0, 63);
  bitmap_set (r, REGION_DIRTY, 63, 1);
  expect (&asking, PASS_ASK, 0, 64);
  bitmap_set (r, REGION_DIRTY, 0, BLOCKS);
  expect (&asking, PASS_ASK, 0, 8192);
  expect (&plain, PASS_DATA, 0, 64);
}

Test (pass, hints_part_zeroes_from_data_at_whole_blocks)
{
  setup ();
  /* data up to the middle of block 100; zero up to the middle of block 1000; data to 1100; too
   * little zero to count */
  const struct endpoint_extent x[] = {
    { .length = 100 * BLOCK + 2048 }, { .length = 900 * BLOCK, .zero = true },
    { .length = 100 * BLOCK },        { .length = 63 * BLOCK, .zero = true, .allocated = true },
    { .length = 500 * BLOCK },
  };
  bitmap_set (r, REGION_DIRTY, 0, 2000);
  pass_set_hints (&p, 0, 2000 * BLOCK, x, 5);
  expect (&asking, PASS_DATA, 0, 64);
  p.cursor = 64;
  expect (&asking, PASS_DATA, 64, 37); /* block 100 is half data */
  p.cursor = 101;
  expect (&asking, PASS_ZERO, 101, 899); /* so is block 1000 */
  p.cursor = 1000;
  expect (&asking, PASS_DATA, 1000, 64);
  p.cursor = 1100;
  expect (&asking, PASS_DATA, 1100, 64); /* 63 blocks of zeroes are just read */
  p.cursor = 1700;
  expect (&asking, PASS_ASK, 1700, 300); /* beyond the hints */
}

/* What lies in a lower layer need not be read either, unless this job has visited it. */
Test (pass, lower_layers_are_settled_until_they_are_visited)
{
  setup ();
  const struct endpoint_extent x[] = {
    { .length = 100 * BLOCK, .lower = true },
    { .length = 100 * BLOCK, .lower = true, .zero = true },
    { .length = 800 * BLOCK },
  };
  bitmap_set (r, REGION_DIRTY, 0, 1000);
  pass_set_hints (&p, 0, 1000 * BLOCK, x, 3);
  expect (&asking, PASS_ZERO, 0, 200);
  bitmap_set (r, REGION_VISITED, 120, 3);
  expect (&asking, PASS_ZERO, 0, 120);
  p.cursor = 120;
  expect (&asking, PASS_DATA, 120, 3);
  p.cursor = 123;
  expect (&asking, PASS_ZERO, 123, 77);
  p.cursor = 200;
  expect (&asking, PASS_DATA, 200, 64);
}

Test (pass, zeroes_at_an_odd_end_reach_it)
{
  setup ();
  bitmap_set (r, REGION_DIRTY, 0, BLOCKS);
  const struct endpoint_extent x[] = { { .length = DISK - 9000 * (uint64_t)BLOCK, .zero = true } };
  p.cursor = 9000;
  pass_set_hints (&p, 9000 * (uint64_t)BLOCK, DISK - 9000 * (uint64_t)BLOCK, x, 1);
  expect (&asking, PASS_ZERO, 9000, 1000);
}

Test (pass, a_failed_question_counts_as_data)
{
  setup ();
  bitmap_set (r, REGION_DIRTY, 0, 1000);
  pass_set_hints (&p, 0, 1000 * BLOCK, NULL, 0);
  expect (&asking, PASS_DATA, 0, 64);
  pass_restart (&p); /* and is forgotten with the pass */
  expect (&asking, PASS_ASK, 0, 1000);
}

/* Walk whole disks of random dirt: every dirty block is given out exactly once, and no other. */
Test (pass, random_walks_cover_exactly_the_dirty_blocks)
{
  setup ();
  srandom (7);
  for (unsigned round = 0; round < 50; round++) {
    static bool want[BLOCKS];
    bitmap_clear_all (r, REGION_DIRTY);
    bitmap_clear_all (r, REGION_QUARANTINE);
    for (unsigned i = 0; i < BLOCKS; i++)
      want[i] = false;
    for (unsigned i = 0; i < 100; i++) {
      uint64_t f = (uint64_t)random () % BLOCKS, n = (uint64_t)random () % 300;
      if (f + n > BLOCKS)
        n = BLOCKS - f;
      bitmap_set (r, REGION_DIRTY, f, n);
      for (uint64_t b = f; b < f + n; b++)
        want[b] = true;
      if (i % 10 == 0)
        bitmap_set (r, REGION_QUARANTINE, f, n);
    }
    pass_restart (&p);
    uint64_t f, n;
    enum pass_kind k;
    while ((k = pass_next (&p, r, &asking, &f, &n)) != PASS_END) {
      if (k == PASS_ASK) {
        struct endpoint_extent x[2] = {
          { .length = n / 2 * BLOCK + 1, .zero = random () % 2 },
          { .length = n * BLOCK, .zero = random () % 2, .allocated = true },
        };
        pass_set_hints (&p, f * BLOCK, n * BLOCK, x, 2);
        continue;
      }
      for (uint64_t b = f; b < f + n; b++) {
        cr_assert (want[b], "block %lu given out", (unsigned long)b);
        cr_assert_eq (bitmap_test (r, REGION_QUARANTINE, b), k == PASS_VERIFY);
        want[b] = false;
      }
      p.cursor = f + n;
    }
    for (unsigned b = 0; b < BLOCKS; b++)
      cr_assert_not (want[b], "block %u left out", b);
  }
}

/* A caller that has no buffer for a whole request waits for one: the order stays. */
Test (pass, waits_in_front_of_a_run_that_is_too_long)
{
  setup ();
  struct pass_options o = plain;
  o.longest = 2;
  bitmap_set (r, REGION_DIRTY, 5, 2);
  bitmap_set (r, REGION_DIRTY, 10, 3);
  bitmap_set (r, REGION_DIRTY, 20, 1);
  expect (&o, PASS_DATA, 5, 2);
  p.cursor = 7;
  expect (&o, PASS_LONG, 10, 3);
  expect (&plain, PASS_DATA, 10, 3);
  p.cursor = 13;
  expect (&o, PASS_DATA, 20, 1);
}

/* What could not be read is left out until its time comes, and then read block by block. */
Test (pass, leaves_out_what_is_unreadable)
{
  setup ();
  struct pass_options o = plain;
  o.now_ns = 1;
  bitmap_set (r, REGION_DIRTY, 0, 10);
  unreadable_failed (&p.unreadable, 4, 1, 5, 1);
  expect (&o, PASS_DATA, 0, 4);
  p.cursor = 4;
  expect (&o, PASS_DATA, 5, 5);
  o.now_ns = UINT64_C (1000000000);
  expect (&o, PASS_DATA, 4, 1);
  uint64_t first, count;
  cr_assert (pass_free_run (&p, r, 4, 10, 64, &first, &count));
  cr_assert_eq (first, 5, "a write that waits reads it again and again");
}
