/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The bandwidth limit: a token bucket.  See rate.h.
 */

#include "config.h"

#include "base/clock.h"
#include "mirror/engine/rate.h"

/* How long an idle bucket fills.  This is short, so that no long burst follows an idle spell, but
 * longer than a thread waits for a busy processor, so that the limit can be reached. */
#define BURST_S 0.1

static void
refill (struct rate_limit *r, uint64_t now_ns)
{
  if (now_ns <= r->last_ns)
    return;
  r->tokens += (double)r->rate * (double)(now_ns - r->last_ns) / (double)NS_PER_S;
  double burst = (double)r->rate * BURST_S;
  if (r->tokens > burst)
    r->tokens = burst;
  r->last_ns = now_ns;
}

void
rate_init (struct rate_limit *r, uint64_t rate, uint64_t now_ns)
{
  r->rate = rate;
  r->tokens = 0;
  r->last_ns = now_ns;
}

void
rate_set (struct rate_limit *r, uint64_t rate, uint64_t now_ns)
{
  refill (r, now_ns);
  if (r->rate == 0)
    r->tokens = 0;
  r->rate = rate;
}

uint64_t
rate_wait (struct rate_limit *r, uint64_t now_ns)
{
  if (r->rate == 0)
    return 0;
  refill (r, now_ns);
  if (r->tokens >= 0)
    return 0;
  return (uint64_t)(-r->tokens * (double)NS_PER_S / (double)r->rate) + 1;
}

void
rate_take (struct rate_limit *r, uint64_t bytes)
{
  if (r->rate != 0)
    r->tokens -= (double)bytes;
}

void
rate_give (struct rate_limit *r, uint64_t bytes)
{
  if (r->rate != 0)
    r->tokens += (double)bytes;
}
