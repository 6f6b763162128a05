/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Prints what the simulator says about one or all guests: for people who change the decision.
 *
 *   tests/sim/table [POLICY [RHO...]]
 *
 * In the environment: DISK_MB, B (MiB/s), CAPPED (0: B is the line's, not a limit), THREADS, BLOCKS
 * (of a request), DELAY (max-write-delay, ms), RTT (ms), LIMIT (s), GUEST (its number), ON,
 * FORGETS, STAY, CALM_AFTER (s) and CALM_RATE (writes/s), DEFER and TWICE (what if): sim.h.
 */

#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/sim/sim.h"

static const char *const gates[] = { "open", "throttled", "synchronous" };

static double
from_env (const char *name, double fallback)
{
  const char *v = getenv (name);
  return v != NULL ? atof (v) : fallback;
}

static void
print (const struct sim_options *o)
{
  struct sim_result r = sim_run (o);
  printf ("%-10s rho %-5.3g %-5s traffic %6.3f  ready %6.1f s  pause %6.1f ms  passes %3u  kept "
          "%3.0f %%  "
          "delay %5.1f ms  slowed at %5.1f s  %-11s switches %2u  not ready %5.1f s  kept when "
          "calm %3.0f %% %s\n",
          sim_guest_name (o->guest), o->guest_rate / o->bandwidth, r.ended ? "ends" : "NEVER",
          r.traffic, r.ready_s, r.pause_ms, r.passes, 100 * r.kept, r.longest_delay_ms,
          r.first_slowed_s, gates[r.gate], r.switches, r.unready_s, 100 * r.calm_kept,
          r.said_no        ? "not converging"
          : r.ever_said_no ? "(said no)"
                           : "");
}

int
main (int argc, char **argv)
{
  static const char *const policies[] = { "sync", "throttle", "none", "fail" };
  static const double all[] = { 0.05, 0.1, 0.2, 0.4, 0.625, 0.8, 1, 1.5, 2, 5 };
  struct sim_options o = sim_defaults ();

  o.disk_bytes = (uint64_t)from_env ("DISK_MB", 1024) << 20;
  o.bandwidth = from_env ("B", 100) * 1048576;
  o.capped = from_env ("CAPPED", 1) != 0;
  o.threads = (unsigned)from_env ("THREADS", 16);
  o.request_blocks = (unsigned)from_env ("BLOCKS", 1);
  o.max_write_delay_ms = from_env ("DELAY", 50);
  o.rtt_ms = from_env ("RTT", 0.5);
  o.on_s = from_env ("ON", 5);
  o.forgets = from_env ("FORGETS", 0) != 0;
  o.stay_s = from_env ("STAY", 0);
  o.calm_after_s = from_env ("CALM_AFTER", 0);
  o.calm_rate = from_env ("CALM_RATE", 200) * SIM_BLOCK;
  o.give_up_s = o.stay_s + from_env ("LIMIT", 120);
  o.defer_hot = from_env ("DEFER", 0) != 0;
  o.ahead_twice = from_env ("TWICE", 0) != 0;
  for (unsigned i = 0; argc > 1 && i < 4; i++)
    if (!strcmp (argv[1], policies[i]))
      o.policy = (enum job_policy)i;
  int only = (int)from_env ("GUEST", -1);
  for (int g = 0; g < SIM_NR_GUESTS; g++)
    for (unsigned i = 0; (only < 0 || only == g)
                         && i < (argc > 2 ? (unsigned)argc - 2 : sizeof all / sizeof all[0]);
         i++) {
      o.guest = (enum sim_guest)g;
      o.guest_rate = (argc > 2 ? atof (argv[i + 2]) : all[i]) * o.bandwidth;
      print (&o);
    }
  return 0;
}
