/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proves of the supervisor: a session that works is not given up on beyond the job's time limit,
 * however long each of its blocks takes to be done; one that answers nothing is.
 */

#include "config.h"

#include <string.h>

#include "tests/unit/engine-fixture.h"

#include "base/clock.h"
#include "base/text.h"
#include "mirror/engine/supervisor.h"

#define SECOND ((uint64_t)NS_PER_S)

static struct supervisor s;

/* A session in which the test does the work.  The time limit is over. */
static void
supervise (void)
{
  engine_setup (1024, false);
  s = (struct supervisor){ .engine = e, .give_up_ns = SECOND, .state = SUPERVISOR_COPYING };
  s.trouble_ns = clock_ns () - 10 * SECOND;
  s.progress_ns = clock_ns ();
  s.error = text_copy ("it was lost");
  s.session = calloc (1, sizeof *s.session);
  s.session->engine = e;
  pthread_mutex_init (&s.session->lock, NULL);
}

/* SECONDS go by.  Has it given up then? */
static bool
given_up (uint64_t seconds)
{
  s.progress_ns -= seconds * SECOND;
  supervisor_poll (&s);
  return s.gave_up;
}

static void
end (void)
{
  supervisor_stop (&s);
  teardown ();
}

/* A long run of zeroes, and a block in quarantine that was written and is being read back: nothing
 * is acknowledged for long. */
Test (supervisor, each_reply_to_a_write_counts)
{
  supervise ();
  mark (7, 1);
  expect (WORK_DATA, 7, 1);
  for (unsigned i = 0; i < 5; i++) {
    engine_progress (e);
    cr_assert_not (given_up (60), "though something was answered");
  }
  cr_assert (given_up (60));
  cr_assert_eq (s.state, SUPERVISOR_ENDED);
  end ();
}

/* What the destination holds already is read there, and nothing is written. */
Test (supervisor, what_need_not_be_written_counts)
{
  supervise ();
  mark (7, 1);
  expect (WORK_DATA, 7, 1);
  for (unsigned i = 0; i < 5; i++) {
    atomic_fetch_add (&e->counters.passed_bytes, BLOCK);
    cr_assert_not (given_up (60), "though it was compared");
  }
  cr_assert (given_up (60));
  end ();
}

Test (supervisor, a_long_line_is_given_its_round_trips)
{
  supervise ();
  mark (7, 1);
  expect (WORK_DATA, 7, 1);
  atomic_store (&e->rtt_ns, 60 * SECOND);
  cr_assert_not (given_up (120));
  cr_assert (given_up (120));
  end ();
}

Test (supervisor, who_has_nothing_in_flight_waits_for_nothing)
{
  supervise ();
  mark (7, 1);
  const struct engine_task t = expect (WORK_DATA, 7, 1);
  cr_assert (atomic_load (&e->counters.in_copy_bytes) > 0);
  done (&t);
  cr_assert_not (given_up (60));
  end ();
}
