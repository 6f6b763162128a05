/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proves, over modelled guests (sim.h), that the convergence decision does what its policies
 * promise: when a job ends, what it sends, how long it pauses the guest, and that it says so where
 * it does not converge.
 */

#include "config.h"

#include "tests/unit/unit.h"

#include "tests/sim/sim.h"

#define MIB 1048576.0
#define SETTLED_MS 301 /* allowed downtime, and one step of the clock */

static struct sim_options
options (enum job_policy policy, enum sim_guest guest, double writes_per_s)
{
  struct sim_options o = sim_defaults ();
  o.policy = policy;
  o.guest = guest;
  o.guest_rate = writes_per_s * SIM_BLOCK;
  return o;
}

/* The usual case: a disk of 1 GiB, 100 MiB/s, and uniform writes of 4 KiB. */
Test (converge, light_guests_need_no_policy)
{
  static const struct {
    double writes, ready, sent;
  } want[]
      = { { 200, 1.04, 1.01 }, { 800, 1.06, 1.03 }, { 2000, 1.10, 1.06 }, { 4000, 1.16, 1.11 } };

  for (unsigned i = 0; i < 4; i++) {
    struct sim_options o = options (POLICY_NONE, SIM_UNIFORM, want[i].writes);
    struct sim_result r = sim_run (&o);
    cr_assert (r.ended);
    cr_assert_not (r.ever_said_no);
    cr_assert_leq (r.traffic, want[i].sent, "%.0f/s sends %.3f", want[i].writes, r.traffic);
    cr_assert_leq (r.ready_s, want[i].ready * 10.24, "%.0f/s is ready after %.2f s", want[i].writes,
                   r.ready_s);
    cr_assert_leq (r.pause_ms, SETTLED_MS);
  }
}

static void
ends_well (const struct sim_options *o, double most)
{
  struct sim_result r = sim_run (o);
  const char *name = sim_guest_name (o->guest);
  double rho = o->guest_rate / o->bandwidth;

  cr_assert (r.ended, "%s, rho %.2f, policy %d, capped %d, does not end", name, rho, o->policy,
             o->capped);
  cr_assert_leq (r.traffic, most, "%s, rho %.2f, policy %d, capped %d, sends %.2f", name, rho,
                 o->policy, o->capped, r.traffic);
  cr_assert_leq (r.pause_ms, SETTLED_MS, "%s, rho %.2f, policy %d, capped %d, pauses for %.0f ms",
                 name, rho, o->policy, o->capped, r.pause_ms);
  cr_assert_leq (r.longest_delay_ms, o->max_write_delay_ms + 1);
  cr_assert_not (r.said_no);
}

/* On this line each request waits for longer than a guest's write may.  So every write is missed,
 * and the job must end all the same. */
Test (converge, a_line_slower_than_the_delay)
{
  struct sim_options o = options (POLICY_SYNC, SIM_UNIFORM, 50000);
  o.capped = false;
  o.bandwidth = 10 * MIB;
  o.disk_bytes /= 8;
  ends_well (&o, 1.6);
}

/* A thin line: 64 MiB at 10 MiB/s, and a guest that wants to write PART of that. */
static struct sim_options
thin_line (enum job_policy policy, enum sim_guest guest, double part)
{
  struct sim_options o = options (policy, guest, part * 10 * MIB / SIM_BLOCK);
  o.disk_bytes = 64 * (uint64_t)MIB;
  o.bandwidth = 10 * MIB;
  o.capped = false;
  o.forgets = true;
  o.rtt_ms = o.flush_ms = 10;
  return o;
}

/* That the guest will be faster than the line is foreseen in the first pass, long before D is high:
 * by how D rises. */
Test (converge, a_guest_as_fast_as_the_line_is_foreseen)
{
  static const struct {
    enum job_policy policy;
    double ready_s;
  } want[] = { { POLICY_SYNC, 7.5 }, { POLICY_THROTTLE, 8.0 } };

  for (unsigned i = 0; i < 2; i++) {
    struct sim_options o = thin_line (want[i].policy, SIM_UNIFORM, 1.5625);
    struct sim_result r = sim_run (&o);
    cr_assert (r.ended);
    cr_assert_leq (r.first_slowed_s, 3, "slowed after %.2f s", r.first_slowed_s);
    cr_assert_leq (r.ready_s, want[i].ready_s, "ready after %.2f s", r.ready_s);
  }
}

/* But one that writes behind the first pass in order shows all that it wants: D does not rise. */
Test (converge, a_guest_that_writes_in_order_is_not_misjudged)
{
  static const double parts[] = { 0.2, 0.3, 0.4, 0.45 };

  for (unsigned i = 0; i < 4; i++) {
    struct sim_options o = thin_line (POLICY_SYNC, SIM_SEQUENTIAL, parts[i]);
    struct sim_result r = sim_run (&o);
    cr_assert (r.ended && r.first_slowed_s < 0, "%g: slowed after %.2f s", parts[i],
               r.first_slowed_s);
  }
}

/* Where one round trip is about what a guest's write may wait, waiting would be in vain: policy
 * sync goes by steps there, and ends.  A nearer line is not taken for a far one. */
Test (converge, sync_on_a_far_line)
{
  static const double rtts[] = { 0.1, 10, 39, 41, 100, 200 };

  for (unsigned i = 0; i < 6; i++) {
    struct sim_options o = options (POLICY_SYNC, SIM_UNIFORM, 30000);
    o.disk_bytes /= 4;
    o.rtt_ms = rtts[i];
    struct sim_result r = sim_run (&o);
    cr_assert (r.ended, "%g ms", rtts[i]);
    cr_assert_leq (r.pause_ms, SETTLED_MS);
    cr_assert_eq (r.waited, rtts[i] < 40, "%g ms", rtts[i]);
    cr_assert_geq (r.switches, 1);
  }
}

Test (converge, none_goes_on_and_says_that_it_does_not_converge)
{
  struct sim_options o = options (POLICY_NONE, SIM_UNIFORM, 50000);
  struct sim_result r = sim_run (&o);
  cr_assert_not (r.ended);
  cr_assert (r.said_no);
  cr_assert (r.gate == CONVERGE_OPEN);
  cr_assert_gt (r.passes, 5);
}

Test (converge, fail_gives_up_and_not_too_early)
{
  struct sim_options o = options (POLICY_FAIL, SIM_UNIFORM, 50000);
  struct sim_result r = sim_run (&o);
  cr_assert (r.gave_up);
  cr_assert_leq (r.passes, 3);
  cr_assert (r.gate == CONVERGE_OPEN);
  o.guest_rate = 4000.0 * SIM_BLOCK;
  r = sim_run (&o);
  cr_assert (r.ended && !r.gave_up);
}

/* No pass is long enough to judge anything by.  Nothing may be divided by zero. */
Test (converge, small_disks)
{
  for (uint64_t blocks = 1; blocks <= 1024; blocks *= 4)
    for (int g = SIM_UNIFORM; g < SIM_REWRITE; g++) {
      struct sim_options o = options (POLICY_SYNC, (enum sim_guest)g, 100);
      o.disk_bytes = blocks * SIM_BLOCK;
      if (blocks >= 64 || (g != SIM_HOT_SPOT && g != SIM_ZIPF))
        ends_well (&o, 1000);
    }
}

/* The destination's flush alone takes longer than the allowed downtime.  No gate can help there, so
 * the guest must be left alone. */
Test (converge, a_slow_flush_is_no_reason_to_slow_the_guest)
{
  struct sim_options o = options (POLICY_SYNC, SIM_UNIFORM, 2000);
  o.flush_ms = 500;
  o.give_up_s = 40;
  struct sim_result r = sim_run (&o);
  cr_assert_not (r.ended);
  cr_assert (r.gate == CONVERGE_OPEN && r.first_slowed_s < 0);
}

#ifndef UNIT_THREAD_SANITIZER /* it has one thread, so nothing would be found, in minutes */

static const double rhos[]
    = { 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.625, 0.8, 0.95, 1.05, 1.5, 2, 3, 5 };
#define NR_RHOS (sizeof rhos / sizeof rhos[0])

/* The same job with a smaller disk and smaller rates, which takes less to compute. */
static void
scale (struct sim_options *o, unsigned by)
{
  o->disk_bytes /= by;
  o->bandwidth /= by;
  o->guest_rate /= by;
}

Test (converge, a_light_guest_is_not_touched)
{
  for (int g = 0; g < SIM_NR_GUESTS; g++)
    for (unsigned p = 0; p < 4; p++) {
      struct sim_options o = options ((enum job_policy)p, (enum sim_guest)g, 2000);
      scale (&o, 4);
      struct sim_result r = sim_run (&o);
      cr_assert (r.ended && r.gate == CONVERGE_OPEN && r.first_slowed_s < 0, "%s, policy %u",
                 sim_guest_name (o.guest), p);
    }
}

Test (converge, heavy_guests_end_within_the_traffic)
{
  static const double writes[] = { 16000, 30000, 50000 };
  static const enum sim_guest guests[] = { SIM_UNIFORM, SIM_ZIPF, SIM_HOT_SPOT };

  for (unsigned w = 0; w < 3; w++)
    for (unsigned g = 0; g < 3; g++)
      for (unsigned p = POLICY_SYNC; p <= POLICY_THROTTLE; p++) {
        struct sim_options o = options ((enum job_policy)p, guests[g], writes[w]);
        scale (&o, 4);
        ends_well (&o, 1.6);
      }
}

/* A disk that is copied in about a second.  Elsewhere the dirty rate is measured over a longer
 * time. */
Test (converge, small_disks_with_heavy_guests)
{
  static const enum sim_guest guests[] = { SIM_UNIFORM, SIM_ZIPF, SIM_HOT_SPOT, SIM_BURSTY };
  static const double heavy[] = { 0.625, 0.8, 1, 2, 5 };

  for (unsigned g = 0; g < 4; g++)
    for (unsigned i = 0; i < 5; i++)
      for (unsigned p = POLICY_SYNC; p <= POLICY_THROTTLE; p++) {
        struct sim_options o = options ((enum job_policy)p, guests[g], 0);
        o.disk_bytes /= 8;
        o.guest_rate = heavy[i] * o.bandwidth;
        ends_well (&o, 1.6);
      }
}

Test (converge, sync_and_throttle_end_with_every_guest)
{
  for (int g = 0; g < SIM_NR_GUESTS; g++)
    for (unsigned i = 0; i < NR_RHOS; i++)
      for (unsigned p = POLICY_SYNC; p <= POLICY_THROTTLE; p++)
        for (unsigned capped = i % 2; capped < 2; capped++) {
          struct sim_options o = options ((enum job_policy)p, (enum sim_guest)g, 0);
          o.capped = capped;
          if (capped) /* on a slow line each request waits long; 4 MiB are to fit the pause */
            scale (&o, g == SIM_REWRITE ? 4 : 16);
          o.guest_rate = rhos[i] * o.bandwidth;
          /* One that goes round and round meets nothing that is dirty already: passes that just
           * halve send 2 x. */
          ends_well (&o, g == SIM_SEQUENTIAL ? 2.05 : 1.6);
        }
}

static struct sim_options
staying (enum job_policy policy, enum sim_guest guest, double rho, double rtt_ms)
{
  struct sim_options o = options (policy, guest, 0);
  o.guest_rate = rho * o.bandwidth;
  o.rtt_ms = rtt_ms;
  return o;
}

/* After a storm the guest wants 200 writes a second.  The line is so long that several of them wait
 * at any time.  They must not be kept waiting for ever. */
Test (converge, a_calm_guest_is_let_go)
{
  static const double rtts[] = { 2, 10, 30 };
  unsigned slowed = 0;

  for (int g = 0; g < SIM_NR_GUESTS; g++)
    for (unsigned i = 0; i < 3; i++)
      for (unsigned p = POLICY_SYNC; p <= POLICY_THROTTLE; p++) {
        struct sim_options o = staying ((enum job_policy)p, (enum sim_guest)g, 3, rtts[i]);
        o.calm_after_s = 20;
        o.calm_rate = 200 * SIM_BLOCK;
        scale (&o, 4);
        o.stay_s = 50;
        struct sim_result r = sim_run (&o);
        const char *name = sim_guest_name (o.guest);
        slowed += r.first_slowed_s >= 0;
        cr_assert (r.ended && r.gate == CONVERGE_OPEN, "%s, policy %u, %.0f ms: gate %d", name, p,
                   rtts[i], (int)r.gate);
        cr_assert_leq (r.switches, 4, "%s, policy %u, %.0f ms: %u switches", name, p, rtts[i],
                       r.switches);
        cr_assert_gt (r.calm_kept, 0.99);
      }
  cr_assert_gt (slowed, 20);
}

/* A guest that needs the gate keeps it, and the job stays ready. */
Test (converge, the_gate_is_not_moved_to_and_fro)
{
  static const double few[] = { 0.2, 0.4, 0.625, 1, 5 };

  for (int g = 0; g < SIM_NR_GUESTS; g++)
    for (unsigned i = 0; i < 5; i++)
      for (unsigned p = POLICY_SYNC; p <= POLICY_THROTTLE; p++)
        for (unsigned forgets = 0; forgets < 2; forgets++) {
          struct sim_options o = staying ((enum job_policy)p, (enum sim_guest)g, few[i], 10);
          scale (&o, 16);
          o.stay_s = 200;
          o.forgets = forgets;
          o.give_up_s = 260;
          struct sim_result r = sim_run (&o);
          const char *name = sim_guest_name (o.guest);
          cr_assert (r.ended, "%s, rho %.2f, policy %u", name, few[i], p);
          cr_assert_leq (r.switches, 6, "%s, rho %.2f, policy %u: %u switches", name, few[i], p,
                         r.switches);
          cr_assert_leq (r.unready_s, 8, "%s, rho %.2f, policy %u: not ready for %.1f s", name,
                         few[i], p, r.unready_s);
        }
}

/* One that writes for one of every four seconds looks as if it wanted little, on average.  With an
 * open gate it would not be ready in each of these seconds. */
Test (converge, bursts_do_not_open_the_gate)
{
  static const double few[] = { 0.4, 0.5, 0.8, 1.1 }, rtts[] = { 0.5, 10, 50 };
  unsigned slowed = 0;

  for (unsigned i = 0; i < 4; i++)
    for (unsigned k = 0; k < 3; k++)
      for (unsigned p = POLICY_SYNC; p <= POLICY_THROTTLE; p++) {
        struct sim_options o = staying ((enum job_policy)p, SIM_BURSTY, few[i], rtts[k]);
        scale (&o, 16);
        o.stay_s = 90;
        o.forgets = true;
        struct sim_result r = sim_run (&o);
        slowed += r.first_slowed_s >= 0;
        cr_assert (r.ended);
        cr_assert_leq (r.switches, 3, "rho %.2f, policy %u, %.1f ms: %u switches", few[i], p,
                       rtts[k], r.switches);
        cr_assert_leq (r.unready_s, 1, "rho %.2f, policy %u, %.1f ms: not ready for %.1f s", few[i],
                       p, rtts[k], r.unready_s);
      }
  cr_assert_eq (slowed, 24);
}

/* The worst case for that: for an hour, storms, and calms that last long enough to be believed. */
Test (converge, storms_and_calms_do_not_move_it_for_ever)
{
  static const double on_s[] = { 5, 15, 60, 120 };
  unsigned most = 0;

  for (unsigned i = 0; i < 4; i++)
    for (unsigned threads = 4; threads <= 16; threads *= 4) {
      struct sim_options o = staying (POLICY_SYNC, SIM_STOP_START, 5, 10);
      scale (&o, 16);
      o.on_s = on_s[i];
      o.give_up_s = 3660;
      o.threads = threads;
      o.forgets = true;
      o.stay_s = 3600;
      struct sim_result r = sim_run (&o);
      if (r.switches > most)
        most = r.switches;
      cr_assert (r.ended);
      cr_assert_leq (r.switches, 20, "%.0f s: %u switches", on_s[i], r.switches);
    }
  cr_assert_gt (most, 6);
}

/* Each wait is bounded.  So a guest with many large requests writes threads x request /
 * max-write-delay bytes a second, whatever the gate is.  If that is below B, the job must end.  If
 * not, it need not end, but it must say so. */
Test (converge, sync_ends_where_it_can_and_says_where_it_does_not)
{
  static const unsigned threads[] = { 1, 4, 16, 64 };
  static const unsigned blocks[] = { 1, 16, 64, 256 };
  static const double delays[] = { 10, 50 };
  static const enum sim_guest guests[]
      = { SIM_UNIFORM, SIM_ZIPF, SIM_HOT_SPOT, SIM_SEQUENTIAL, SIM_REWRITE };
  unsigned lawful = 0, never = 0;

  for (unsigned t = 0; t < 4; t++)
    for (unsigned b = 0; b < 4; b++)
      for (unsigned d = 0; d < 2; d++)
        for (unsigned g = 0; g < 5; g++) {
          struct sim_options o = options (POLICY_SYNC, guests[g], 0);
          o.threads = threads[t];
          o.request_blocks = blocks[b];
          o.max_write_delay_ms = delays[d];
          o.guest_rate = 3 * o.bandwidth;
          o.disk_bytes = UINT64_C (256) << 20;
          o.give_up_s = 40;
          double through = threads[t] * blocks[b] * SIM_BLOCK / delays[d] * 1000 / o.bandwidth;
          struct sim_result r = sim_run (&o);
          if (through < 1)
            lawful++;
          never += !r.ended;
          cr_assert (r.ended || through >= 1, "%s, %u threads of %u blocks, %.0f ms: does not end",
                     sim_guest_name (guests[g]), threads[t], blocks[b], delays[d]);
          cr_assert (r.ended || r.said_no, "%s, %u threads of %u blocks, %.0f ms: does not say it",
                     sim_guest_name (guests[g]), threads[t], blocks[b], delays[d]);
        }
  cr_assert_gt (lawful, 50);
  cr_assert_gt (never, 10);
}

#endif
