/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The forecast.  See forecast.h.
 */

#include "config.h"

#include "mirror/engine/slot.h"
#include "mirror/job/forecast.h"

double
forecast_scattered (uint32_t block_size, unsigned nr_copiers, enum engine_sync sync, double trip_ms)
{
  const struct slots_division most = slots_of_session (nr_copiers, block_size, sync);
  unsigned requests = most.nr_short > 0 ? most.nr_short : most.nr_long;

  return trip_ms > 0 ? (double)requests * block_size * 1000 / trip_ms : 0;
}

static double
ratio_under_policy (const struct forecast_input *in, struct forecast *f, double bandwidth)
{
  double rho = in->dirty_rate / bandwidth;

  if (rho <= CONVERGE_HALF || in->policy == POLICY_NONE || in->policy == POLICY_FAIL)
    return rho;
  bool waits = in->policy == POLICY_SYNC && !converge_is_far (in->trip_ms, in->max_write_delay_ms);
  f->gate = waits ? CONVERGE_SYNCHRONOUS : CONVERGE_THROTTLED;
  return waits ? CONVERGE_SYNC_PART : CONVERGE_LOWEST_STEP;
}

struct forecast
forecast_make (const struct forecast_input *in)
{
  struct forecast f = { .gate = CONVERGE_OPEN, .seconds = -1, .pause_ms = -1 };

  if (in->bandwidth <= 0)
    return f;
  double later = in->scattered > 0 && in->scattered < in->bandwidth ? in->scattered : in->bandwidth;
  f.converges = in->dirty_rate <= CONVERGE_HALF * later;
  double rho = ratio_under_policy (in, &f, later), trip_s = in->trip_ms / 1000;
  double fits = later * (in->max_downtime_ms - in->fixed_ms) / 1000;
  double left = (double)in->data_bytes;
  if (rho >= CONVERGE_LOSING || fits < 0)
    return f;
  /* For ever is not said of what takes long, only of what the guards would stop. */
  f.seconds = 0;
  while (left > fits && f.passes < CONVERGE_MAX_PASSES) {
    f.passes++;
    f.sent_bytes += left;
    double bandwidth = f.passes == 1 ? in->bandwidth : later;
    f.seconds += left / bandwidth + trip_s;
    /* What is dirtied in this pass, as a part of what a later one carries in that time. */
    left = (left / bandwidth + trip_s) * rho * later;
    if (left > (double)in->disk_bytes)
      left = (double)in->disk_bytes;
  }
  f.ends = left <= fits && (in->policy != POLICY_FAIL || f.converges);
  f.sent_bytes += left;
  f.pause_ms = left / later * 1000 + in->fixed_ms;
  if (!f.ends)
    f.seconds = f.pause_ms = -1;
  return f;
}
