/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Dirty neighbours are sent with the clean blocks between them: these are claimed like the others,
 * are no work, and are never to blame.  Where it pays is tests/sim/test-line.c's matter.
 */

#include "config.h"

#include <errno.h>

#include "base/clock.h"
#include "mirror/job/sync.h"
#include "tests/unit/engine-fixture.h"

/* The engine has seen a line on which a gap of up to 8 blocks pays. */
static void
setup (void)
{
  engine_setup (20000, true);
  e->neighbours = (struct neighbours){
    .long_rate = 17e9, .short_rate = 1e9, .short_bytes = 4096, .short_ns = clock_ns ()
  };
}

static uint64_t
claimed (void)
{
  return bitmap_count (r, REGION_CLAIMED_A) + bitmap_count (r, REGION_CLAIMED_B);
}

Test (neighbours, go_as_one_request)
{
  setup ();
  mark (100, 3);
  mark (105, 1);
  mark (108, 2);
  struct engine_task t = expect (WORK_DATA, 100, 10);
  cr_assert_eq (t.clean, 3u << 3 | 3u << 6);
  cr_assert_eq (claimed (), 10, "what is clean is protected too");
  cr_assert_eq (engine_left_bytes (e), 6 * (uint64_t)BLOCK, "and is no work");
  /* Busy: the guest's write to a block between waits for the request's end. */
  mark (104, 1);
  expect (WORK_NONE, 0, 0);
  done (&t);
  usleep (60000); /* the pause between two passes */
  t = expect (WORK_DATA, 104, 1);
  done (&t);
  teardown ();
}

Test (neighbours, half_of_a_request_is_dirty)
{
  setup ();
  mark (100, 1);
  mark (103, 1); /* two clean ones for one */
  struct engine_task t = expect (WORK_DATA, 100, 1);
  done (&t);
  t = expect (WORK_DATA, 103, 1);
  done (&t);
  mark (200, 9);
  mark (218, 1); /* a gap of nine, which takes too long */
  t = expect (WORK_DATA, 200, 9);
  done (&t);
  t = expect (WORK_DATA, 218, 1);
  done (&t);
  mark (300, 40);
  mark (342, 40); /* up to the length of a request */
  t = expect (WORK_DATA, 300, 64);
  done (&t);
  teardown ();
}

Test (neighbours, not_across_quarantine)
{
  setup ();
  e->grace_end_ns = clock_ns () + UINT64_C (1000000000000);
  bitmap_set (r, REGION_QUARANTINE, 101, 1);
  mark (100, 1);
  mark (102, 1);
  mark (300, 2);
  struct engine_task t = expect (WORK_DATA, 100, 1);
  struct engine_task u = expect (WORK_DATA, 102, 1);
  done (&t);
  done (&u);
  t = expect (WORK_DATA, 300, 2);
  done (&t);
  teardown ();
}

Test (neighbours, not_where_bandwidth_is_limited)
{
  setup ();
  engine_set_rate (e, UINT64_C (1) << 40);
  usleep (2000);
  mark (100, 1);
  mark (102, 1);
  struct engine_task t = expect (WORK_DATA, 100, 1);
  done (&t);
  t = expect (WORK_DATA, 102, 1);
  done (&t);
  teardown ();
}

/* A write to a clean block of a request would wait for it: where the gate is synchronous, and at a
 * hand-over, none goes along. */
Test (neighbours, not_where_the_guest_waits)
{
  setup ();
  engine_set_synchronous (e, true, UINT64_C (1000000000));
  mark (100, 1);
  mark (102, 1);
  struct engine_task t = expect (WORK_DATA, 100, 1);
  struct engine_task u = expect (WORK_DATA, 102, 1);
  done (&t);
  done (&u);
  teardown ();
}

Test (neighbours, not_in_a_hurry)
{
  setup ();
  engine_set_hurry (e, true, false);
  mark (100, 1);
  mark (102, 1);
  struct engine_task t = expect (WORK_DATA, 100, 1);
  struct engine_task u = expect (WORK_DATA, 102, 1);
  done (&t);
  done (&u);
  teardown ();
}

/* After a crash of server and worker only what was dirty is in quarantine. */
Test (neighbours, not_with_a_state_file)
{
  cr_assert (sync_may_send_clean (ENGINE_SYNC_FULL, false));
  cr_assert_not (sync_may_send_clean (ENGINE_SYNC_FULL, true));
  for (unsigned mode = ENGINE_SYNC_FULL + 1; mode <= ENGINE_SYNC_COMPARE; mode++) {
    cr_assert_not (sync_may_send_clean ((enum engine_sync)mode, false));
    cr_assert_not (sync_may_send_clean ((enum engine_sync)mode, true));
  }
}

Test (neighbours, a_clean_block_that_cannot_be_read_is_no_work)
{
  setup ();
  mark (100, 1);
  mark (102, 1);
  struct engine_task t = expect (WORK_DATA, 100, 3);
  engine_task_unread (e, &t, EIO);
  cr_assert_eq (bitmap_count (r, REGION_DIRTY), 2);
  cr_assert_not (bitmap_test_any (r, REGION_DIRTY, 101, 1), "it is at the destination");
  t = expect (WORK_DATA, 100, 1);
  done (&t);
  t = expect (WORK_DATA, 102, 1);
  done (&t);
  teardown ();
}

/* What was clean when the request was made, and is written to before it is claimed, is work. */
Test (neighbours, what_turns_dirty_meanwhile_is_given_back)
{
  setup ();
  mark (100, 3);
  uint64_t clean = claim_mixed_run (r, claim_enter (r), 99, 8);
  cr_assert_eq (clean, 1u | 0xfu << 4);
  cr_assert_eq (claimed (), 8);
  cr_assert_eq (bitmap_count (r, REGION_DIRTY), 0);
  bitmap_set (r, REGION_DIRTY, 0, 64);
  cr_assert_eq (claim_mixed_run (r, 0, 0, 64), 0);
  cr_assert_eq (claim_mixed_run (r, 0, 0, 64), UINT64_MAX);
  teardown ();
}

/* A session that is lost with such a request on its way: all of it may come late. */
Test (neighbours, a_lost_session_puts_all_of_it_into_quarantine)
{
  setup ();
  mark (100, 1);
  mark (102, 1);
  expect (WORK_DATA, 100, 3);
  engine_session_over (e);
  cr_assert_eq (bitmap_count (r, REGION_QUARANTINE), 3);
  cr_assert_eq (bitmap_count (r, REGION_DIRTY), 3);
  cr_assert_eq (neighbours_gap (&e->neighbours, clock_ns ()), 0, "another line, perhaps");
  teardown ();
}
