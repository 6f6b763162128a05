/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Bandwidth, dirty rate, expected pause, readiness: from samples given by hand.  How long a job's
 * loop sleeps.
 */

#include "config.h"

#include "tests/unit/unit.h"

#include "mirror/job/estimate.h"
#include "mirror/job/rest.h"
#include "mirror/job/stall.h"

#define MS UINT64_C (1000000)
#define MIB (UINT64_C (1) << 20)

static const struct estimate_costs no_costs;

/* N samples 100 ms apart: BUSY MiB acknowledged and DIRTY MiB dirtied in each. */
static void
feed (struct estimate *e, struct estimate_sample *s, unsigned n, uint64_t busy, uint64_t dirty,
      bool full, double max_downtime)
{
  for (unsigned i = 0; i < n; i++) {
    s->now_ns += 100 * MS;
    s->acked_bytes += busy * MIB;
    s->dirtied_bytes += dirty * MIB;
    s->queue_full = full;
    estimate_add (e, s, &no_costs, max_downtime);
  }
}

Test (estimate, bandwidth_counts_only_while_the_queue_was_full)
{
  struct estimate e;
  struct estimate_sample s = { .left_bytes = 1000 * MIB };
  estimate_init (&e);
  estimate_add (&e, &s, &no_costs, 300);
  feed (&e, &s, 20, 10, 0, true, 300);
  cr_assert_float_eq (e.bandwidth, 100.0 * MIB, 1.0 * MIB);
  feed (&e, &s, 50, 0, 0, false, 300); /* nothing to do: says nothing */
  cr_assert_float_eq (e.bandwidth, 100.0 * MIB, 1.0 * MIB);
  feed (&e, &s, ESTIMATE_WINDOW, 5, 0, true, 300); /* slower: forgotten after a window */
  cr_assert_float_eq (e.bandwidth, 50.0 * MIB, 1.0 * MIB);
}

Test (estimate, dirty_rate_follows_the_guest)
{
  struct estimate e;
  struct estimate_sample s = { .left_bytes = 1000 * MIB };
  estimate_init (&e);
  estimate_add (&e, &s, &no_costs, 300);
  feed (&e, &s, 30, 1, 3, true, 300);
  cr_assert_float_eq (e.dirty_rate, 30.0 * MIB, 0.5 * MIB);
  cr_assert (estimate_have_rates (&e));
  estimate_lost (&e);
  cr_assert_not (estimate_have_rates (&e));
}

Test (estimate, nothing_is_claimed_before_something_was_measured)
{
  struct estimate e;
  struct estimate_sample s = { .left_bytes = 1000 * MIB };
  estimate_init (&e);
  estimate_add (&e, &s, &no_costs, 300);
  estimate_add (&e, &s, &no_costs, 300);
  cr_assert_not (e.pause_known);
  cr_assert_not (e.ready);
  cr_assert_lt (estimate_eta_s (&e, 300, 0), 0);
}

Test (estimate, ready_needs_two_fitting_samples_running)
{
  struct estimate e;
  struct estimate_sample s = { .left_bytes = 1000 * MIB };
  estimate_init (&e);
  estimate_add (&e, &s, &no_costs, 300);
  feed (&e, &s, 20, 10, 0, true, 300);
  s.left_bytes = 20 * MIB; /* 200 ms at 100 MiB/s */
  feed (&e, &s, 1, 10, 0, true, 300);
  cr_assert_not (e.ready);
  s.left_bytes = 50 * MIB; /* 500 ms: starts over */
  feed (&e, &s, 1, 10, 0, true, 300);
  s.left_bytes = 20 * MIB;
  feed (&e, &s, 1, 10, 0, true, 300);
  cr_assert_not (e.ready);
  feed (&e, &s, 1, 10, 0, true, 300);
  cr_assert (e.ready);
  s.left_bytes = 50 * MIB; /* a live state: it ends */
  feed (&e, &s, 1, 10, 0, true, 300);
  cr_assert_not (e.ready);
}

Test (estimate, one_sample_is_enough_if_nothing_is_left_and_the_guest_is_calm)
{
  struct estimate e;
  struct estimate_sample s = { .left_bytes = MIB };
  estimate_init (&e);
  estimate_begin (&e, s);
  s.left_bytes = 0;
  feed (&e, &s, 1, 1, 1, true, 300); /* the guest has written meanwhile */
  cr_assert_not (e.ready);
  estimate_lost (&e);
  feed (&e, &s, 1, 0, 0, false, 300); /* nothing to compare with */
  cr_assert_not (e.ready);
  estimate_lost (&e);
  estimate_begin (&e, s);
  s.quarantine_bytes = 4096;
  feed (&e, &s, 1, 1, 0, true, 300);
  cr_assert_not (e.ready);
  s.quarantine_bytes = 0;
  feed (&e, &s, 1, 1, 0, true, 300);
  cr_assert (e.ready);
  estimate_lost (&e);
  s.left_bytes = 4096; /* something is left: two samples, however little it is */
  estimate_begin (&e, s);
  feed (&e, &s, 1, 1, 0, true, 300);
  cr_assert_not (e.ready);
}

Test (estimate, never_ready_with_quarantine)
{
  struct estimate e;
  struct estimate_sample s = { .left_bytes = 0, .quarantine_bytes = 4096 };
  estimate_init (&e);
  feed (&e, &s, 10, 1, 0, true, 300);
  cr_assert_not (e.ready);
  s.quarantine_bytes = 0;
  feed (&e, &s, 2, 1, 0, true, 300);
  cr_assert (e.ready);
}

Test (estimate, flush_and_round_trip_belong_to_the_pause)
{
  struct estimate e;
  struct estimate_sample s = { .left_bytes = 0 };
  const struct estimate_costs costs = { .flush_ns = 40 * MS, .rtt_ns = 20 * MS };
  estimate_init (&e);
  for (unsigned i = 0; i < 5; i++) {
    s.now_ns += 100 * MS;
    estimate_add (&e, &s, &costs, 50);
  }
  cr_assert_float_eq (e.expected_pause_ms, 60, 0.001);
  cr_assert_not (e.ready);
}

/* A destination that takes its time for each write counts while somebody writes, and not on a calm
 * disk, where it would never be measured again. */
Test (estimate, the_latency_of_a_write_belongs_to_the_pause)
{
  struct estimate e;
  struct estimate_sample s = { .left_bytes = 0 };
  const struct estimate_costs costs
      = { .flush_ns = 40 * MS, .rtt_ns = 20 * MS, .write_ns = 200 * MS };
  estimate_init (&e);
  for (unsigned i = 0; i < 5; i++) {
    s.now_ns += 100 * MS;
    s.dirtied_bytes += MIB;
    estimate_add (&e, &s, &costs, 230);
  }
  cr_assert_float_eq (e.expected_pause_ms, 240, 0.001);
  cr_assert_not (e.ready);
  for (unsigned i = 0; i < 25; i++) {
    s.now_ns += 100 * MS;
    estimate_add (&e, &s, &costs, 230);
  }
  cr_assert_float_eq (e.expected_pause_ms, 60, 0.001);
  cr_assert (e.ready);
}

/* What is on its way arrives during the trip that the last block takes. */
Test (estimate, what_is_on_the_line_is_not_counted_twice)
{
  struct estimate e;
  struct estimate_sample s = { .left_bytes = 1000 * MIB };
  const struct estimate_costs costs
      = { .flush_ns = 50 * MS, .rtt_ns = 50 * MS, .write_ns = 50 * MS };
  estimate_init (&e);
  estimate_add (&e, &s, &no_costs, 300);
  feed (&e, &s, 20, 10, 0, true, 300);
  s.left_bytes = 20 * MIB; /* 200 ms at 100 MiB/s, with a trip and a flush 300 */
  estimate_add (&e, &s, &costs, 290);
  cr_assert_float_eq (e.expected_pause_ms, 300, 1);
  cr_assert_eq (e.fitting, 0);
  s.line_bytes = 2 * MIB;
  estimate_add (&e, &s, &costs, 290);
  cr_assert_float_eq (e.expected_pause_ms, 280, 1);
  cr_assert_eq (e.fitting, 1);
  s.line_bytes = 15 * MIB; /* the line holds 5 of them, the others wait */
  estimate_add (&e, &s, &costs, 240);
  cr_assert_float_eq (e.expected_pause_ms, 250, 1);
  cr_assert_eq (e.fitting, 0);
  s.left_bytes = 4 * MIB;
  s.line_bytes = 4 * MIB;
  estimate_add (&e, &s, &costs, 110);
  cr_assert_float_eq (e.expected_pause_ms, 100, 1);
}

Test (estimate, it_tells_when_it_may_fit)
{
  struct estimate e;
  struct estimate_sample s = { .left_bytes = 1000 * MIB };
  const struct estimate_costs slow = { .flush_ns = 400 * MS };
  estimate_init (&e);
  cr_assert_eq (estimate_fits_in_ms (&e, 300), 0);
  estimate_add (&e, &s, &no_costs, 300);
  cr_assert_eq (estimate_fits_in_ms (&e, 300), 0); /* no bandwidth is known */
  feed (&e, &s, 20, 10, 0, true, 300);
  s.left_bytes = 35 * MIB;
  feed (&e, &s, 1, 10, 0, true, 300);
  cr_assert_float_eq (estimate_fits_in_ms (&e, 300), 50, 1);
  s.left_bytes = 30 * MIB - 1;
  feed (&e, &s, 1, 10, 0, true, 300);
  cr_assert_eq (estimate_fits_in_ms (&e, 300), 0); /* it does */
  s.left_bytes = 35 * MIB;
  estimate_add (&e, &s, &slow, 300);
  cr_assert_eq (estimate_fits_in_ms (&e, 300), 0); /* the flush alone takes too long */
}

/* Many samples in a short time do not push out the rates of the last two seconds. */
Test (estimate, samples_that_come_soon_share_a_span)
{
  struct estimate e;
  struct estimate_sample s = { .left_bytes = 1000 * MIB };
  estimate_init (&e);
  estimate_add (&e, &s, &no_costs, 300);
  feed (&e, &s, 20, 10, 4, true, 300);
  for (unsigned i = 0; i < 21; i++) { /* 420 ms in which nothing moves: 7 spans of 60 ms */
    s.now_ns += 20 * MS;
    estimate_add (&e, &s, &no_costs, 300);
  }
  cr_assert_float_eq (e.bandwidth, 13 * 10.0 * MIB / (13 * 0.1 + 7 * 0.06), 0.1 * MIB);
  cr_assert_float_eq (e.dirty_rate, 13 * 4.0 * MIB / (13 * 0.1 + 7 * 0.06), 0.1 * MIB);
}

Test (estimate, a_lost_session_is_not_ready_and_keeps_the_bandwidth)
{
  struct estimate e;
  struct estimate_sample s = { .left_bytes = 1 * MIB };
  estimate_init (&e);
  estimate_add (&e, &s, &no_costs, 300);
  feed (&e, &s, 20, 10, 0, true, 300);
  cr_assert (e.ready);
  estimate_lost (&e);
  cr_assert_not (e.ready);
  s.now_ns += 3600 * 1000 * MS; /* an hour away: no sample of a rate */
  estimate_add (&e, &s, &no_costs, 300);
  cr_assert_not (e.ready);
  cr_assert_float_eq (e.bandwidth, 100.0 * MIB, 1.0 * MIB);
}

Test (estimate, eta_is_what_is_left_over_what_remains_of_the_bandwidth)
{
  struct estimate e;
  struct estimate_sample s = { .left_bytes = 730 * MIB };
  estimate_init (&e);
  estimate_add (&e, &s, &no_costs, 300);
  feed (&e, &s, 30, 10, 3, true, 300);                                    /* 100 MiB/s against 30 */
  cr_assert_float_eq (estimate_eta_s (&e, 300, e.dirty_rate), 10.0, 0.2); /* (730 - 30) / 70 */
}

Test (estimate, eta_is_unknown_while_the_flush_alone_takes_too_long)
{
  struct estimate e;
  struct estimate_sample s = { .left_bytes = MIB };
  const struct estimate_costs slow = { .flush_ns = 500 * MS };
  estimate_init (&e);
  estimate_add (&e, &s, &no_costs, 300);
  feed (&e, &s, 30, 10, 1, true, 300);
  s.now_ns += 100 * MS;
  estimate_add (&e, &s, &slow, 300);
  cr_assert_not (e.ready);
  cr_assert_lt (estimate_eta_s (&e, 300, 0), 0);
  cr_assert_float_eq (estimate_eta_s (&e, 1000, 0), 0, 0.01);
}

Test (estimate, holes_shorten_the_eta_and_say_nothing_about_bandwidth)
{
  struct estimate e;
  struct estimate_sample s = { .left_bytes = 100030 * MIB };
  estimate_init (&e);
  estimate_add (&e, &s, &no_costs, 300);
  feed (&e, &s, 20, 10, 0, true, 300);
  double without = estimate_eta_s (&e, 300, 0);
  for (unsigned i = 0; i < ESTIMATE_WINDOW; i++) {
    s.now_ns += 100 * MS;
    s.passed_bytes += 1000 * MIB;
    s.queue_full = false;
    estimate_add (&e, &s, &no_costs, 300);
  }
  cr_assert_float_eq (e.bandwidth, 100.0 * MIB, 1.0 * MIB);
  cr_assert_float_eq (without, 1000.0, 1.0);
  cr_assert_float_eq (estimate_eta_s (&e, 300, 0), 10.0, 0.1);
}

Test (estimate, a_calm_disk_is_measured_by_busy_time)
{
  struct estimate e;
  struct estimate_sample s = { .left_bytes = 4 * MIB };
  estimate_init (&e);
  estimate_add (&e, &s, &no_costs, 300);
  s.busy_ns = 20 * MS; /* 2 MiB in 20 ms of the 100: 100 MiB/s, not 20 */
  feed (&e, &s, 1, 2, 2, false, 300);
  cr_assert_float_eq (e.bandwidth, 100.0 * MIB, 1.0 * MIB);
  s.busy_ns += 2 * MS; /* too short to say that it is faster */
  feed (&e, &s, 1, 1, 1, false, 300);
  cr_assert_float_eq (e.bandwidth, 100.0 * MIB, 1.0 * MIB);
  for (unsigned i = 0; i < 50;
       i++) { /* one small request now and then, with the line's latency: says nothing */
    s.now_ns += 100 * MS;
    s.acked_bytes += 4096;
    s.busy_ns += 10 * MS;
    estimate_add (&e, &s, &no_costs, 300);
  }
  cr_assert_geq (e.bandwidth, 90.0 * MIB);
  for (unsigned i = 0; i < 10; i++) { /* much was moved, and slowly */
    s.busy_ns += 50 * MS;
    feed (&e, &s, 1, 2, 2, false, 300);
  }
  cr_assert_float_eq (e.bandwidth, 40.0 * MIB, 1.0 * MIB);
}

Test (estimate, the_first_small_request_tells_something)
{
  struct estimate e;
  struct estimate_sample s = { .left_bytes = 4096 };
  estimate_init (&e);
  estimate_begin (&e, s);
  s = (struct estimate_sample){
    .now_ns = 100 * MS, .acked_bytes = 4096, .busy_ns = MS / 2, .left_bytes = 4096
  };
  estimate_add (&e, &s, &no_costs, 300);
  cr_assert_float_eq (e.bandwidth, 4096 * 2000.0, 1.0);
  cr_assert (e.pause_known);
  cr_assert_leq (e.expected_pause_ms, 1);
}

Test (estimate, no_faster_than_the_limit)
{
  struct estimate e;
  struct estimate_sample s = { .left_bytes = MIB, .limit = 10 * MIB };
  estimate_init (&e);
  estimate_begin (&e, s);
  s.busy_ns = 20 * MS;
  feed (&e, &s, 1, 20, 0, false, 300);
  cr_assert_float_eq (e.bandwidth, 10.0 * MIB, 1.0);
  s.limit = MIB; /* lowered while there is nothing to copy */
  feed (&e, &s, 1, 0, 0, false, 300);
  cr_assert_float_eq (e.bandwidth, 1.0 * MIB, 1.0);
}

Test (stall, counts_only_while_nothing_moves_and_something_is_due)
{
  struct stall s = { 0, 0 };
  cr_assert_eq (stall_look (&s, 0, true, 100 * MS), 0);
  cr_assert_eq (stall_look (&s, 0, true, 300 * MS), 200 * MS);
  cr_assert_eq (stall_look (&s, 1, true, 400 * MS), 0, "something has moved");
  cr_assert_eq (stall_look (&s, 1, true, 1000 * MS), 600 * MS);
  cr_assert_eq (stall_look (&s, 1, false, 1100 * MS), 0, "nothing is due");
  cr_assert_eq (stall_look (&s, 1, true, 1200 * MS), 100 * MS);
}

Test (stall, a_low_limit_needs_time_for_a_request)
{
  cr_assert_eq (stall_limit_ns (1000 * MS, 262144, 0), 1000 * MS);
  cr_assert_eq (stall_limit_ns (1000 * MS, 262144, 100 << 20), 1000 * MS);
  cr_assert_eq (stall_limit_ns (1000 * MS, 262144, 65536), 8000 * MS);
}

/* R9: while nobody knows what a flush takes, the pause is not known. */
Test (estimate, not_ready_before_the_first_flush)
{
  struct estimate e;
  struct estimate_sample s = { .left_bytes = 0 };
  struct estimate_costs costs = { .no_flush_yet = true };

  estimate_init (&e);
  for (unsigned i = 0; i < 5; i++) {
    s.now_ns += 100 * MS;
    estimate_add (&e, &s, &costs, 300);
    cr_assert (!e.ready && !e.pause_known);
  }
  costs = (struct estimate_costs){ .flush_ns = 10 * MS };
  s.now_ns += 100 * MS;
  estimate_add (&e, &s, &costs, 300);
  cr_assert (e.ready && e.pause_known);
}

/* A job of 100 MiB/s that has so many MiB left after its first two seconds. */
static void
two_seconds (struct estimate *e, uint64_t left, double flush_ms)
{
  const struct estimate_costs costs = { .flush_ns = (uint64_t)(flush_ms * MS) };
  struct estimate_sample s = { .left_bytes = left * MIB };

  estimate_init (e);
  estimate_add (e, &s, &costs, 300);
  for (unsigned i = 0; i < 20; i++) {
    s.now_ns += 100 * MS;
    s.acked_bytes += 10 * MIB;
    s.queue_full = true;
    estimate_add (e, &s, &costs, 300);
  }
}

Test (estimate, the_next_sample_comes_when_it_may_make_the_job_ready)
{
  struct estimate e;

  two_seconds (&e, 1000, 0);
  cr_assert_eq (estimate_next_ns (&e, true, 1000 * MIB, 300), 100 * MS);
  cr_assert_eq (estimate_next_ns (&e, true, 0, 300), 0, "all of a sudden nothing is left");
  cr_assert_eq (estimate_next_ns (&e, false, 0, 300), 100 * MS, "no sample makes it ready");
  two_seconds (&e, 34, 0); /* 340 ms */
  cr_assert_float_eq ((double)estimate_next_ns (&e, true, 34 * MIB, 300), 40 * MS, MS);
  two_seconds (&e, 40, 0);
  cr_assert_eq (estimate_next_ns (&e, true, 40 * MIB, 300), 100 * MS);
  e.expected_pause_ms = 301;
  cr_assert_eq (estimate_next_ns (&e, true, 30 * MIB, 300), 10 * MS, "no sooner than that");
  e.expected_pause_ms = 1e300; /* more than any whole number holds */
  cr_assert_eq (estimate_next_ns (&e, true, 30 * MIB, 300), 100 * MS);
}

Test (estimate, a_second_sample_comes_soon)
{
  struct estimate e;

  two_seconds (&e, 20, 0);
  e.fitting = 1;
  cr_assert_eq (estimate_next_ns (&e, true, 20 * MIB, 300), 10 * MS);
  two_seconds (&e, 0, 0);
  cr_assert_eq (estimate_next_ns (&e, true, 0, 300), 10 * MS, "still nothing is left");
  two_seconds (&e, 0, 400); /* a flush alone takes longer than is allowed */
  cr_assert_eq (estimate_next_ns (&e, true, 0, 300), 100 * MS, "a worker that rests is not woken");
}

/* ---- how long a loop sleeps ---- */

Test (rest, a_copy_looks_often_only_at_its_end)
{
  struct rest_view v = { .state = SUPERVISOR_COPYING, .left = 1000 * MIB };

  cr_assert_not (rest_is_stuck (&v));
  cr_assert_eq (rest_copy_ms (&v), 100);
  v.left = 31 * MIB;
  cr_assert_eq (rest_copy_ms (&v), 1);
  v.limit = MIB; /* the end is half a minute away */
  cr_assert_eq (rest_copy_ms (&v), 100);
  v.left = MIB / 16;
  cr_assert_eq (rest_copy_ms (&v), 1);
  v.limit = 0;
  v.left = 0;
  v.asleep = true; /* it is flushed */
  cr_assert_eq (rest_copy_ms (&v), 1);
}

Test (rest, a_guest_that_is_held_does_not_wait_for_a_look)
{
  struct rest_view v = { .state = SUPERVISOR_COPYING, .limit = MIB, .left = MIB, .held = true };

  cr_assert_eq (rest_copy_ms (&v), 1);
  v.state = SUPERVISOR_CONNECTING; /* that it is back is to be seen at once, too */
  cr_assert_eq (rest_copy_ms (&v), 1);
  v.held = false;
  cr_assert_eq (rest_copy_ms (&v), 100);
}

/* However little is left: nothing of it can be copied now. */
Test (rest, a_copy_that_is_stuck_sleeps)
{
  const struct rest_view stuck[] = {
    { .state = SUPERVISOR_WAITING },
    { .state = SUPERVISOR_CONNECTING },
    { .state = SUPERVISOR_COPYING, .paused = true },
    { .state = SUPERVISOR_COPYING, .unreadable = true },
  };

  for (unsigned i = 0; i < sizeof stuck / sizeof stuck[0]; i++)
    for (uint64_t left = 0; left < 100 * MIB; left += 16 * MIB) {
      struct rest_view v = stuck[i];

      v.left = left;
      cr_assert (rest_is_stuck (&v));
      cr_assert_eq (rest_copy_ms (&v), 100, "case %u: more is copied, or handed over", i);
      v.asleep = true;
      cr_assert_eq (rest_copy_ms (&v), 1000, "case %u", i);
    }
}
