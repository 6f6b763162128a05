/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Places that cannot be read: a run that failed is read block by block, a bad block is left alone
 * for longer and longer, everything else goes on, and what can be read again is forgotten.
 */

#include "config.h"

#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "mirror/engine/unreadable.h"
#include "tests/unit/unit.h"

static struct unreadable u;

static void
setup (void)
{
  memset (&u, 0, sizeof u);
}

/* May COUNT blocks from FIRST on be read?  0: no; else how many of them at once. */
static uint64_t
may (uint64_t now, uint64_t first, uint64_t count)
{
  return unreadable_may_read (&u, now, &first, &count) ? count : 0;
}

Test (unreadable, a_run_is_read_block_by_block_at_once)
{
  setup ();
  cr_assert_eq (may (1, 0, 64), 64);
  unreadable_failed (&u, 64, 64, EIO, 1);
  cr_assert_eq (u.since_ns, 1);
  cr_assert_eq (may (1, 0, 128), 64, "what lies before it is not cut at it");
  cr_assert_eq (may (1, 64, 64), 1);
  cr_assert_eq (may (1, 127, 64), 1);
  cr_assert_eq (may (1, 128, 64), 64);
}

Test (unreadable, a_bad_block_is_left_alone_for_longer_and_longer)
{
  setup ();
  uint64_t now = NS_PER_S, wait = NS_PER_S / 2;
  unreadable_failed (&u, 70, 1, EIO, now);
  for (unsigned i = 0; i < 10; i++) {
    cr_assert_eq (may (now + wait - 1, 70, 5), 0, "read too early at attempt %u", i);
    cr_assert_eq (may (now + wait, 70, 5), 1);
    now += wait;
    unreadable_failed (&u, 70, 1, EIO, now);
    cr_assert_eq (u.nr, 1);
    wait = wait * 2 < 30 * (uint64_t)NS_PER_S ? wait * 2 : 30 * (uint64_t)NS_PER_S;
  }
  cr_assert_eq (u.since_ns, NS_PER_S);
  /* The search goes on behind it. */
  uint64_t first = 70, count = 5;
  cr_assert_not (unreadable_may_read (&u, now, &first, &count));
  cr_assert_eq (first, 71);
}

Test (unreadable, good_blocks_of_a_bad_run_are_forgotten)
{
  setup ();
  unreadable_failed (&u, 0, 8, EIO, 5);
  unreadable_copied (&u, 3, 1); /* splits it */
  cr_assert_eq (u.nr, 2);
  unreadable_copied (&u, 0, 3);
  unreadable_failed (&u, 5, 1, EIO, 6);
  unreadable_copied (&u, 4, 1);
  unreadable_copied (&u, 6, 2);
  cr_assert_eq (u.nr, 1);
  cr_assert_eq (u.runs[0].first, 5);
  cr_assert_eq (u.runs[0].count, 1);
  cr_assert_eq (u.since_ns, 5);
  unreadable_copied (&u, 0, 100);
  cr_assert_eq (u.nr, 0);
  cr_assert_eq (u.since_ns, 0);
}

Test (unreadable, a_series_of_failures_suspends_the_source)
{
  setup ();
  uint64_t now = NS_PER_S;
  for (unsigned i = 0; i < UNREADABLE_SERIES; i++) {
    cr_assert_not (unreadable_suspended (&u, now));
    unreadable_failed (&u, i * 64, 64, EIO, now);
  }
  cr_assert (unreadable_suspended (&u, now + NS_PER_S / 2 - 1));
  cr_assert_not (unreadable_suspended (&u, now + NS_PER_S / 2));
  for (unsigned i = 0; i < UNREADABLE_SERIES; i++)
    unreadable_failed (&u, i * 64, 64, EIO, now);
  cr_assert (unreadable_suspended (&u, now + NS_PER_S - 1), "the second wait is not longer");
  unreadable_copied (&u, 1000000, 1);
  cr_assert_not (unreadable_suspended (&u, now), "a read that succeeds does not end it");
}

Test (unreadable, more_than_can_be_remembered)
{
  setup ();
  for (unsigned i = 0; i < 3 * UNREADABLE_MAX; i++)
    unreadable_failed (&u, 2 * i, 1, EIO, 1);
  cr_assert_eq (u.nr, UNREADABLE_MAX);
  cr_assert_eq (may (2, 0, 1), 0);
  cr_assert_eq (may (2, 5 * UNREADABLE_MAX, 1), 1);
  unreadable_copied (&u, 0, 1000);
  cr_assert_eq (u.since_ns, 0);
}

Test (unreadable, what_is_left_alone_is_counted)
{
  setup ();
  uint64_t until = 0;
  cr_assert_eq (unreadable_left_alone (&u, 1, &until), 0);
  unreadable_failed (&u, 0, 8, EIO, 1); /* to be read block by block, at once */
  cr_assert_eq (unreadable_left_alone (&u, 1, &until), 0);
  unreadable_failed (&u, 3, 1, EIO, 1000);
  unreadable_failed (&u, 5, 1, EIO, 2000);
  cr_assert_eq (unreadable_left_alone (&u, 2000, &until), 2);
  cr_assert_eq (until, 1000 + NS_PER_S / 2, "the first one's turn comes first");
  cr_assert_eq (unreadable_left_alone (&u, until, &until), 1);
  cr_assert_eq (until, 2000 + NS_PER_S / 2);
  cr_assert_eq (unreadable_left_alone (&u, until, &until), 0);
}
