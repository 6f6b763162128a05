/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The forecast of a dry run: its arithmetic, and that it is no better than what the simulator of a
 * whole job finds for the guest that it assumes.
 */

#include "config.h"

#include "tests/unit/unit.h"

#include "mirror/job/forecast.h"
#include "tests/sim/sim.h"

#define MIB UINT64_C (1048576)
#define RATE(mib) ((double)(mib)*1048576)

static struct forecast_input
input (enum job_policy policy, double dirty_mib)
{
  return (struct forecast_input){
    .disk_bytes = 1000 * MIB,
    .data_bytes = 1000 * MIB,
    .bandwidth = RATE (100),
    .dirty_rate = RATE (dirty_mib),
    .policy = policy,
    .max_downtime_ms = 300,
    .fixed_ms = 10,
  };
}

Test (forecast, an_idle_guest)
{
  struct forecast_input in = input (POLICY_SYNC, 0);
  struct forecast f = forecast_make (&in);
  cr_assert (f.converges && f.ends);
  cr_assert_eq (f.gate, CONVERGE_OPEN);
  cr_assert_eq (f.passes, 1);
  cr_assert_float_eq (f.seconds, 10, 0.01);
  cr_assert_float_eq (f.sent_bytes, 1000.0 * MIB, 1);
  cr_assert_float_eq (f.pause_ms, 10, 0.01);
}

Test (forecast, passes_shrink_by_the_ratio)
{
  struct forecast_input in = input (POLICY_NONE, 40);
  struct forecast f = forecast_make (&in); /* 1000, 400, 160, 64, and 25.6 left */
  cr_assert (f.converges && f.ends);
  cr_assert_eq (f.passes, 4);
  cr_assert_float_eq (f.sent_bytes, 1649.6 * MIB, 1000);
  cr_assert_float_eq (f.pause_ms, 266, 0.1);
}

Test (forecast, what_the_policy_makes_of_a_fast_guest)
{
  static const double rates[] = { 60, 200, 1000 };
  for (unsigned i = 0; i < 3; i++) {
    struct forecast_input in = input (POLICY_SYNC, rates[i]);
    struct forecast f = forecast_make (&in);
    cr_assert (!f.converges && f.ends && f.gate == CONVERGE_SYNCHRONOUS);
    cr_assert_leq (f.sent_bytes, 1.4 * 1000 * MIB);
    in.policy = POLICY_THROTTLE;
    f = forecast_make (&in);
    cr_assert (!f.converges && f.ends && f.gate == CONVERGE_THROTTLED);
    in.policy = POLICY_FAIL;
    f = forecast_make (&in);
    cr_assert (!f.converges && !f.ends && f.gate == CONVERGE_OPEN && f.seconds < 0);
    in.policy = POLICY_NONE;
    f = forecast_make (&in);
    cr_assert (!f.converges && f.ends == (rates[i] < 95));
  }
}

/* A long line: each pass and the hand-over take a round trip more, and scattered blocks carry less
 * than whole requests do. */
Test (forecast, a_long_line)
{
  struct forecast_input in = input (POLICY_NONE, 30);
  in.trip_ms = 100;
  in.fixed_ms = 200;
  in.max_downtime_ms = 800;
  in.max_write_delay_ms = 50;
  in.scattered = forecast_scattered (4096, 2, ENGINE_SYNC_FULL,
                                     in.trip_ms); /* 1024 blocks each 100 ms: 40 MiB/s */
  cr_assert_float_eq (in.scattered, RATE (40), 1);
  struct forecast f = forecast_make (&in);
  cr_assert (!f.converges && f.ends && f.gate == CONVERGE_OPEN);
  /* 10.1 s leave 303 MiB, that takes 7.675 s and leaves 230.25, and so on. */
  cr_assert_gt (f.passes, 5);
  cr_assert_gt (f.seconds, 25);
  in.policy = POLICY_SYNC;
  f = forecast_make (&in);
  cr_assert (f.ends && f.gate == CONVERGE_THROTTLED, "waiting would be in vain");
  in.max_write_delay_ms = 200;
  cr_assert_eq (forecast_make (&in).gate, CONVERGE_SYNCHRONOUS);
  in.dirty_rate = RATE (15);
  cr_assert (forecast_make (&in).converges);
  in.fixed_ms = 801;
  cr_assert_not (forecast_make (&in).ends);
}

Test (forecast, blocks_as_long_as_requests)
{
  static const unsigned whole[] = { 160, 284, 285, 284 }, comparing[] = { 64, 128, 189, 188 };

  for (unsigned n = 1; n <= 4; n++) {
    cr_assert_float_eq (forecast_scattered (65536, n, ENGINE_SYNC_FULL, 10),
                        whole[n - 1] * 65536.0 * 100, 1, "%u copiers", n);
    cr_assert_float_eq (forecast_scattered (4096, n, ENGINE_SYNC_COMPARE, 10),
                        comparing[n - 1] * 4096.0 * 100, 1, "%u copiers that compare", n);
  }
  cr_assert_float_eq (forecast_scattered (4096, 2, ENGINE_SYNC_FULL, 0), 0, 0.1);
}

Test (forecast, nothing_known_and_nothing_possible)
{
  struct forecast_input in = input (POLICY_SYNC, 10);
  in.bandwidth = 0;
  cr_assert_not (forecast_make (&in).ends);
  in = input (POLICY_SYNC, 10);
  in.fixed_ms = 400; /* the flush alone takes longer than is allowed */
  cr_assert_not (forecast_make (&in).ends);
  in = input (POLICY_SYNC, 10);
  in.data_bytes = 0;
  struct forecast f = forecast_make (&in);
  cr_assert (f.ends && f.passes == 0 && f.seconds < 0.001);
}

/* A sequential guest dirties a clean block with each write: the forecast's own assumption.  The job
 * takes two seconds to see that it must act, a fifth of a pass here. */
Test (forecast, is_what_the_simulator_finds)
{
  static const double rhos[] = { 0.05, 0.2, 0.4, 0.7, 2 };
  for (unsigned i = 0; i < 5; i++) {
    struct sim_options o = sim_defaults ();
    o.guest = SIM_SEQUENTIAL;
    o.disk_bytes /= 4;
    o.bandwidth /= 4;
    o.guest_rate = rhos[i] * o.bandwidth;
    struct sim_result r = sim_run (&o);
    const struct forecast_input in = {
      .disk_bytes = o.disk_bytes,
      .data_bytes = o.disk_bytes,
      .bandwidth = o.bandwidth,
      .dirty_rate = o.guest_rate,
      .policy = o.policy,
      .max_downtime_ms = o.max_downtime_ms,
      .fixed_ms = o.flush_ms,
    };
    struct forecast f = forecast_make (&in);
    double sent = f.sent_bytes / (double)o.disk_bytes;
    cr_assert (r.ended && f.ends);
    cr_assert_float_eq (sent, r.traffic, 0.25, "rho %.2f: foretold %.2f, was %.2f", rhos[i], sent,
                        r.traffic);
  }
}
