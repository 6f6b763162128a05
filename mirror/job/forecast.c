/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The forecast.  See forecast.h.
 */

#include "config.h"

#include "mirror/job/forecast.h"

/* As in converge.c: above this a pass does not halve what is left, and the policy acts. */
#define HALF 0.5
#define TOO_NEAR 0.95
#define SYNC_PART 0.25
#define LOWEST_STEP 0.2

static double
ratio_under_policy (const struct forecast_input *in, struct forecast *f)
{
  double rho = in->dirty_rate / in->bandwidth;

  if (rho <= HALF || in->policy == POLICY_NONE || in->policy == POLICY_FAIL)
    return rho;
  f->gate = in->policy == POLICY_SYNC ? CONVERGE_SYNCHRONOUS : CONVERGE_THROTTLED;
  return in->policy == POLICY_SYNC ? SYNC_PART : LOWEST_STEP;
}

struct forecast
forecast_make (const struct forecast_input *in)
{
  struct forecast f = { .gate = CONVERGE_OPEN, .seconds = -1, .pause_ms = -1 };

  if (in->bandwidth <= 0)
    return f;
  f.converges = in->dirty_rate <= HALF * in->bandwidth;
  double rho = ratio_under_policy (in, &f);
  double fits = in->bandwidth * (in->max_downtime_ms - in->fixed_ms) / 1000;
  double left = (double)in->data_bytes;
  if (rho >= TOO_NEAR || fits < 0)
    return f;
  /* For ever is not said of what takes long, only of what the guards would stop. */
  f.seconds = 0;
  while (left > fits && f.passes < CONVERGE_MAX_PASSES) {
    f.passes++;
    f.sent_bytes += left;
    f.seconds += left / in->bandwidth;
    left *= rho;
    if (left > (double)in->disk_bytes)
      left = (double)in->disk_bytes;
  }
  f.ends = left <= fits && (in->policy != POLICY_FAIL || f.converges);
  f.sent_bytes += left;
  f.pause_ms = left / in->bandwidth * 1000 + in->fixed_ms;
  if (!f.ends)
    f.seconds = f.pause_ms = -1;
  return f;
}
