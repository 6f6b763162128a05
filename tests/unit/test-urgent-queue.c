/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The worker's side of the synchronous gate: which requests wait, for what, and when they are
 * answered; and when the job may be called synchronised.  The filter is played by the test: it
 * marks, posts, and reads the answer.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "tests/unit/fixture.h"

#include "mirror/engine/catchup.h"
#include "mirror/engine/urgent-queue.h"

#define BLOCKS 10000u

static struct region *r;
static struct pass p;
static struct urgent_queue q;
static struct urgent_view v;
static struct catchup c;

static void
setup (void)
{
  region_free (r);
  r = fixture_region (BLOCKS);
  pass_init (&p);
  memset (&q, 0, sizeof q);
  v = (struct urgent_view){ .pass = &p, .synchronised = true, .next_flush = 1 };
  memset (&c, 0, sizeof c);
}

/* A guest's write: marked, then posted. */
static int
write_blocks (uint64_t first, uint64_t count, uint32_t more)
{
  bitmap_set (r, REGION_DIRTY, first, count);
  return urgent_post (r, URGENT_WRITE | more, first, count);
}

static enum urgent_answer
answer_of (int slot)
{
  return urgent_wait (r, slot, 0);
}

/* What the engine does to copy a run, and when that was acknowledged. */
static void
begin_copy (uint64_t first, uint64_t count)
{
  cr_assert (pass_busy_add (&p, first, count));
  claim_run (r, 0, first, count);
  urgent_queue_handed_out (&q, first, count);
}

static bool
end_copy (uint64_t first, uint64_t count)
{
  pass_busy_remove (&p, first);
  return urgent_queue_settle (&q, r, &v, first, count);
}

static void
expect_next (uint64_t max, uint64_t first, uint64_t count)
{
  uint64_t f = 0, n = 0;
  cr_assert (urgent_queue_next (&q, r, &p, max, &f, &n));
  cr_assert_eq (f, first, "first %lu instead of %lu", (unsigned long)f, (unsigned long)first);
  cr_assert_eq (n, count, "count %lu instead of %lu", (unsigned long)n, (unsigned long)count);
}

static void
expect_nothing (void)
{
  uint64_t f, n;
  cr_assert (!urgent_queue_next (&q, r, &p, 64, &f, &n));
}

Test (urgent_queue, a_write_is_answered_when_its_blocks_are_acknowledged)
{
  setup ();
  int s = write_blocks (100, 10, 0);
  cr_assert (!urgent_queue_gather (&q, r, &v));
  expect_next (4, 100, 4);
  begin_copy (100, 4);
  expect_next (64, 104, 6);
  begin_copy (104, 6);
  expect_nothing ();
  end_copy (104, 6);
  cr_assert_eq (answer_of (s), URGENT_ANSWER_NONE, "answered while a part was under copy");
  end_copy (100, 4);
  cr_assert_eq (answer_of (s), URGENT_ANSWER_OK);
  cr_assert_eq (q.nr, 0);
}

/* The guest writes a block again while it is copied: what was read may be older than that write. */
Test (urgent_queue, a_block_that_turned_dirty_again_is_copied_again)
{
  setup ();
  bitmap_set (r, REGION_DIRTY, 7, 1);
  begin_copy (7, 1);
  int s = write_blocks (7, 1, 0);
  urgent_queue_gather (&q, r, &v);
  expect_nothing (); /* R6: never twice at a time */
  end_copy (7, 1);
  cr_assert_eq (answer_of (s), URGENT_ANSWER_NONE);
  expect_next (64, 7, 1);
  begin_copy (7, 1);
  end_copy (7, 1);
  cr_assert_eq (answer_of (s), URGENT_ANSWER_OK);
}

Test (urgent_queue, given_back_blocks_are_handed_out_again)
{
  setup ();
  int s = write_blocks (50, 4, 0);
  urgent_queue_gather (&q, r, &v);
  begin_copy (50, 4);
  claim_give_back (r, 0, 50, 4); /* could not be read */
  end_copy (50, 4);
  cr_assert_eq (answer_of (s), URGENT_ANSWER_NONE);
  expect_next (64, 50, 4);
}

Test (urgent_queue, somebody_else_s_copy_will_do)
{
  setup ();
  bitmap_set (r, REGION_DIRTY, 0, 1000);
  int s = urgent_post (r, URGENT_WRITE, 10, 5);
  urgent_queue_gather (&q, r, &v);
  begin_copy (0, 64);
  expect_nothing ();
  end_copy (0, 64);
  cr_assert_eq (answer_of (s), URGENT_ANSWER_OK);
  /* Copied before it was even taken. */
  s = urgent_post (r, URGENT_WRITE, 10, 5);
  urgent_queue_gather (&q, r, &v);
  cr_assert_eq (answer_of (s), URGENT_ANSWER_OK);
}

Test (urgent_queue, fua_waits_for_a_flush_that_is_sent_after_the_write)
{
  setup ();
  v.next_flush = 8; /* number 7 is under way */
  int s = write_blocks (3, 1, URGENT_FLUSH);
  cr_assert (!urgent_queue_gather (&q, r, &v));
  begin_copy (3, 1);
  cr_assert (end_copy (3, 1), "nobody asked for a flush");
  urgent_queue_flushed (&q, r, 7);
  cr_assert_eq (answer_of (s), URGENT_ANSWER_NONE, "an earlier flush counted");
  urgent_queue_flushed (&q, r, 8);
  cr_assert_eq (answer_of (s), URGENT_ANSWER_OK);
}

Test (urgent_queue, a_flush_alone_waits_for_the_next_one)
{
  setup ();
  v.next_flush = 5;
  int s = urgent_post (r, URGENT_FLUSH, 0, 0);
  cr_assert (urgent_queue_gather (&q, r, &v));
  urgent_queue_flushed (&q, r, 4);
  cr_assert_eq (answer_of (s), URGENT_ANSWER_NONE);
  urgent_queue_flushed (&q, r, 5);
  cr_assert_eq (answer_of (s), URGENT_ANSWER_OK);
}

/* A flush that nothing depends on is not waited for. */
Test (urgent_queue, no_flush_before_the_job_is_synchronised)
{
  setup ();
  v.synchronised = false;
  int s = urgent_post (r, URGENT_FLUSH, 0, 0);
  cr_assert (!urgent_queue_gather (&q, r, &v));
  cr_assert_eq (answer_of (s), URGENT_ANSWER_OK);
  s = write_blocks (3, 1, URGENT_FLUSH);
  urgent_queue_gather (&q, r, &v);
  begin_copy (3, 1);
  cr_assert (!end_copy (3, 1));
  cr_assert_eq (answer_of (s), URGENT_ANSWER_OK);
}

Test (urgent_queue, quarantine_is_late_at_once)
{
  setup ();
  bitmap_set (r, REGION_QUARANTINE, 22, 1);
  int s = write_blocks (20, 4, 0);
  urgent_queue_gather (&q, r, &v);
  cr_assert_eq (answer_of (s), URGENT_ANSWER_LATE);
  s = write_blocks (30, 4, 0);
  urgent_queue_gather (&q, r, &v);
  cr_assert_eq (answer_of (s), URGENT_ANSWER_NONE);
}

Test (urgent_queue, the_first_pass_copies_what_is_ahead_of_it)
{
  setup ();
  v.synchronised = false;
  v.first_pass = true;
  p.cursor = 1000;
  int ahead = write_blocks (1000, 1, 0), across = write_blocks (999, 2, 0);
  urgent_queue_gather (&q, r, &v);
  cr_assert_eq (answer_of (ahead), URGENT_ANSWER_OK);
  cr_assert_eq (answer_of (across), URGENT_ANSWER_NONE);
  cr_assert (bitmap_test (r, REGION_DIRTY, 1000));
  /* The pass would skip a block that is busy ahead of the cursor. */
  begin_copy (999, 2);
  int busy = write_blocks (1000, 1, 0);
  urgent_queue_gather (&q, r, &v);
  cr_assert_eq (answer_of (busy), URGENT_ANSWER_NONE);
  /* Once the job is synchronised, every write waits. */
  v.synchronised = true;
  ahead = write_blocks (2000, 1, 0);
  urgent_queue_gather (&q, r, &v);
  cr_assert_eq (answer_of (ahead), URGENT_ANSWER_NONE);
}

Test (urgent_queue, what_was_given_up_is_copied_no_more_as_urgent)
{
  setup ();
  int s = write_blocks (5, 1, 0);
  urgent_queue_gather (&q, r, &v);
  urgent_drop (r, s);
  expect_nothing ();
  cr_assert_eq (q.nr, 0);
  /* The slot is free again: all of them can be taken. */
  for (unsigned i = 0; i < URGENT_SLOTS; i++)
    cr_assert_neq (urgent_post (r, URGENT_FLUSH, 0, 0), -1);
}

Test (urgent_queue, refuse_answers_everybody)
{
  setup ();
  int a = write_blocks (5, 1, 0);
  urgent_queue_gather (&q, r, &v);
  int b = write_blocks (6, 1, 0);
  urgent_queue_refuse (&q, r);
  cr_assert_eq (answer_of (a), URGENT_ANSWER_LATE);
  cr_assert_eq (answer_of (b), URGENT_ANSWER_LATE);
  cr_assert_eq (q.nr, 0);
}

Test (urgent_queue, many_in_order)
{
  setup ();
  int s[300];
  for (unsigned i = 0; i < 300; i++)
    s[i] = write_blocks (5000 - 2 * i, 1, 0);
  urgent_queue_gather (&q, r, &v);
  cr_assert_eq (q.nr, 300);
  for (unsigned i = 0; i < 300; i++) {
    expect_next (64, 5000 - 2 * i, 1);
    begin_copy (5000 - 2 * i, 1);
  }
  expect_nothing ();
  for (unsigned i = 300; i-- > 0;) {
    end_copy (5000 - 2 * i, 1);
    cr_assert_eq (answer_of (s[i]), URGENT_ANSWER_OK);
  }
  cr_assert_eq (q.nr, 0);
}

Test (urgent_queue, credit)
{
  setup ();
  cr_assert_eq (q.credit, 0);
  urgent_queue_earn (&q, 3 * 4096);
  cr_assert_eq (q.credit, 4096);
  urgent_queue_spend (&q, 8192);
  cr_assert_eq (q.credit, -4096);
  urgent_queue_earn (&q, UINT64_C (1) << 40);
  cr_assert_eq (q.credit, URGENT_CREDIT_BYTES);
}

/* ---- catching up ---- */

static void
epoch (void)
{
  atomic_fetch_add (&r->hdr->sync_epoch, 1);
}

/* A pass over the dirty blocks in plain order.  Everything is acknowledged except for what is busy
 * in the end. */
static void
copy_all (void)
{
  const struct pass_options o = { .max_data = 64,
                                  .max_zero = 64,
                                  .wait_number = catchup_wait_number (&c),
                                  .quarantine_ready = true };
  uint64_t f, n;
  while (pass_next (&p, r, &o, &f, &n) == PASS_DATA) {
    begin_copy (f, n);
    p.cursor = f + n;
    end_copy (f, n);
  }
}

static void
wrap (void)
{
  catchup_wrapped (&c, r, &p);
  pass_restart (&p);
  catchup_look (&c, r, &p);
}

Test (catchup, at_rest)
{
  setup ();
  epoch ();
  catchup_look (&c, r, &p);
  cr_assert (!catchup_synchronised (&c, r), "the gate is not synchronous");
  catchup_set (&c, true);
  bitmap_set (r, REGION_DIRTY, 5, 1);
  catchup_look (&c, r, &p);
  cr_assert (!catchup_synchronised (&c, r));
  begin_copy (5, 1);
  catchup_look (&c, r, &p);
  cr_assert (!catchup_synchronised (&c, r), "not acknowledged yet");
  end_copy (5, 1);
  catchup_look (&c, r, &p);
  cr_assert (catchup_synchronised (&c, r));
  epoch (); /* a write went on without us */
  cr_assert (!catchup_synchronised (&c, r));
}

Test (catchup, in_a_pass_while_others_wait)
{
  setup ();
  epoch ();
  catchup_set (&c, true);
  bitmap_set (r, REGION_DIRTY, 100, 500);
  catchup_begin (&c, r, &p);
  copy_all ();
  bitmap_set (r, REGION_DIRTY, 3, 1); /* behind the cursor: somebody waits for it */
  begin_copy (200, 1);                /* a copy that is under way at the end */
  wrap ();
  cr_assert (!catchup_synchronised (&c, r), "not everything is acknowledged");
  begin_copy (3, 1);
  end_copy (200, 1);
  catchup_look (&c, r, &p);
  cr_assert (catchup_synchronised (&c, r), "what is begun later does not count");
}

Test (catchup, a_miss_during_the_pass)
{
  setup ();
  epoch ();
  catchup_set (&c, true);
  bitmap_set (r, REGION_DIRTY, 100, 500);
  catchup_begin (&c, r, &p);
  copy_all ();
  bitmap_set (r, REGION_DIRTY, 3, 1);
  epoch ();
  wrap ();
  cr_assert (!catchup_synchronised (&c, r));
  catchup_begin (&c, r, &p);
  copy_all ();
  wrap ();
  cr_assert (catchup_synchronised (&c, r));
}

Test (catchup, a_miss_after_the_end)
{
  setup ();
  epoch ();
  catchup_set (&c, true);
  bitmap_set (r, REGION_DIRTY, 100, 1);
  bitmap_set (r, REGION_DIRTY, 900, 1);
  catchup_begin (&c, r, &p);
  begin_copy (900, 1);
  copy_all ();
  wrap ();
  bitmap_set (r, REGION_DIRTY, 3, 1);
  epoch ();
  end_copy (900, 1);
  catchup_look (&c, r, &p);
  cr_assert (!catchup_synchronised (&c, r));
}

/* A block has been in copy since before the epoch, and was changed meanwhile, also before the
 * epoch: nobody waits for it. */
Test (catchup, waits_for_old_copies)
{
  setup ();
  catchup_set (&c, true);
  bitmap_set (r, REGION_DIRTY, 40, 1);
  begin_copy (40, 1);
  bitmap_set (r, REGION_DIRTY, 40, 1);
  epoch ();
  bitmap_set (r, REGION_DIRTY, 10, 1);
  bitmap_set (r, REGION_DIRTY, 90, 1);
  catchup_begin (&c, r, &p);
  copy_all ();
  cr_assert_eq (p.cursor, 11, "the pass went past a block that is dirty and busy");
  end_copy (40, 1);
  copy_all ();
  cr_assert_eq (p.cursor, 91);
  wrap ();
  cr_assert (catchup_synchronised (&c, r));
  cr_assert_eq (bitmap_count (r, REGION_DIRTY), 0);
}

/* The pass goes past a block whose copy began after the epoch: whoever changed it waits. */
Test (catchup, passes_by_new_copies)
{
  setup ();
  epoch ();
  catchup_set (&c, true);
  catchup_begin (&c, r, &p);
  bitmap_set (r, REGION_DIRTY, 40, 1);
  begin_copy (40, 1);
  bitmap_set (r, REGION_DIRTY, 40, 1);
  bitmap_set (r, REGION_DIRTY, 90, 1);
  copy_all ();
  cr_assert_eq (p.cursor, 91);
}

Test (catchup, given_back_blocks_spoil_the_pass)
{
  setup ();
  epoch ();
  catchup_set (&c, true);
  bitmap_set (r, REGION_DIRTY, 40, 1);
  catchup_begin (&c, r, &p);
  begin_copy (40, 1);
  p.cursor = 41;
  claim_give_back (r, 0, 40, 1);
  end_copy (40, 1);
  wrap ();
  cr_assert (!catchup_synchronised (&c, r));
}

Test (catchup, quarantine_and_lost_sessions)
{
  setup ();
  epoch ();
  catchup_set (&c, true);
  bitmap_set (r, REGION_DIRTY, 40, 1);
  bitmap_set (r, REGION_QUARANTINE, 40, 1);
  catchup_begin (&c, r, &p);
  p.cursor = 50; /* its grace time is not over */
  wrap ();
  cr_assert (!catchup_synchronised (&c, r));
  bitmap_clear (r, REGION_QUARANTINE, 40, 1);
  catchup_begin (&c, r, &p);
  copy_all ();
  catchup_lost (&c, r);
  bitmap_set (r, REGION_DIRTY, 40, 1); /* revoked */
  wrap ();
  cr_assert (!catchup_synchronised (&c, r));
}
