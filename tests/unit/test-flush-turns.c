/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Flush turns: how long a flush takes, as the expected pause counts it, and when one is due that
 * makes nothing durable.
 */

#include "config.h"

#include <errno.h>

#include "tests/unit/engine-fixture.h"

#include "base/clock.h"

#define MIB (UINT64_C (1) << 20)

/* The line is known to carry 10 MiB a second, and a round trip to take 50 s: times are so long that
 * a busy machine makes no difference. */
static void
know_line (void)
{
  const struct latency_reply reply
      = { .took_ns = NS_PER_S / 10, .queued = MIB, .delivered = MIB, .pressed = true };

  latency_add (&e->latency, &reply, clock_ns ());
  atomic_store (&e->rtt_ns, 50 * (uint64_t)NS_PER_S);
}

/* A flush was sent SECONDS ago, behind so many bytes, and is answered now.  Was it of that
 * length? */
static void
flush (bool line_known, uint64_t queued, uint64_t seconds, double length)
{
  engine_setup (1024, false);
  if (line_known)
    know_line ();
  mark (7, 1);
  const struct engine_task t = expect (WORK_DATA, 7, 1);
  done (&t);
  atomic_store (&e->counters.writing_bytes, queued);
  engine_flush (e);
  expect (WORK_FLUSH, 0, 0);
  e->flush_start_ns = clock_ns () - seconds * (uint64_t)NS_PER_S;
  double running = (double)engine_flush_ns (e) / NS_PER_S;
  engine_flush_done (e);
  double taken = (double)engine_flush_ns (e) / NS_PER_S;
  cr_assert (running >= length - 0.1 && running < length + 10, "%f s while it ran", running);
  cr_assert (taken >= length - 0.1 && taken < length + 10, "%f s", taken);
  teardown ();
}

/* What it waits for are writes that a hand-over counts anyway. */
Test (flush_turns, waiting_behind_writes_is_not_counted)
{
  flush (true, 0, 300, 300);
  flush (true, 2000 * MIB, 300, 100);
}

/* The fastest rate may have been that of a moment. */
Test (flush_turns, a_flush_takes_a_round_trip)
{
  flush (true, 4000 * MIB, 300, 50);
  flush (true, 4000 * MIB, 20, 20);
}

Test (flush_turns, all_of_it_counts_while_the_line_is_not_known)
{
  flush (false, 2000 * MIB, 300, 300);
}

/* A slow flush was answered SECONDS ago, and nothing was written since. */
static void
flushed (uint64_t seconds)
{
  atomic_store (&e->flush_ns, (uint64_t)NS_PER_S);
  e->last_flush_ns = clock_ns () - seconds * (uint64_t)NS_PER_S;
}

/* It keeps the job from being ready, so its length is measured again. */
Test (flush_turns, a_slow_flush_is_tried_again)
{
  engine_setup (1024, false);
  engine_set_watched (e, true);
  flushed (0);
  e->active_ns = 0;
  struct engine_task t = expect (WORK_NONE, 0, 0);
  cr_assert_leq (t.wait_ns, NS_PER_S);
  cr_assert_gt (t.rest_ns, 100 * (uint64_t)NS_PER_S, "there is nothing to copy");
  flushed (2);
  expect (WORK_FLUSH, 0, 0);
  engine_flush_done (e);
  teardown ();
}

Test (flush_turns, not_while_paused)
{
  engine_setup (1024, false);
  engine_set_paused (e, true);
  flushed (1000);
  struct engine_task t = expect (WORK_NONE, 0, 0);
  cr_assert_gt (t.wait_ns, 100 * (uint64_t)NS_PER_S);
  engine_flush (e); /* asked for, it is done all the same */
  expect (WORK_FLUSH, 0, 0);
  engine_flush_done (e);
  engine_set_paused (e, false);
  flushed (2);
  expect (WORK_FLUSH, 0, 0);
  engine_flush_done (e);
  teardown ();
}

Test (flush_turns, seldom_while_the_source_cannot_be_read)
{
  engine_setup (1024, false);
  engine_set_watched (e, true);
  mark (7, 1);
  const struct engine_task read = expect (WORK_DATA, 7, 1);
  engine_task_unread (e, &read, EIO);
  flushed (20);
  const struct engine_task t = expect (WORK_NONE, 0, 0);
  cr_assert_lt (t.wait_ns, 11 * (uint64_t)NS_PER_S, "the block is tried again before");
  flushed (31);
  expect (WORK_FLUSH, 0, 0);
  engine_flush_done (e);
  teardown ();
}
