/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See neighbours.h.
 */

#include "config.h"

#include "base/clock.h"
#include "mirror/engine/neighbours.h"

#define LONG_BYTES (UINT64_C (128) * 1024) /* at least: a long request */
#define SHORT_BYTES (UINT64_C (16) * 1024) /* at most: a short one */
#define SMOOTH 16                          /* replies */
/* The rate of short requests is measured anew after this time: lines change. */
#define SHORT_LASTS_NS ((uint64_t)(5 * NS_PER_S))
/* So many are measured, and the requests in flight so many times, before it is believed. */
#define SHORT_REPLIES 64
#define SHORT_WINDOWS 4
#define OFF_NS ((uint64_t)(10 * NS_PER_S))
/* A gap must take half the time of the request that it saves, at most. */
#define MARGIN 2
/* A line whose rates differ by less is filled by short requests too, as far as can be measured. */
#define LEAST_RATIO 2

static void
smooth (double *mean, double x)
{
  *mean = *mean == 0 ? x : *mean + (x - *mean) / SMOOTH;
}

void
neighbours_reply (struct neighbours *n, const struct latency_reply *r, uint64_t now_ns)
{
  if (r->took_ns == 0 || !r->pressed || r->bytes == 0)
    return;
  double rate = (double)r->delivered / (double)r->took_ns * NS_PER_S;
  if (r->bytes >= LONG_BYTES)
    smooth (&n->long_rate, rate);
  if (r->bytes > SHORT_BYTES || r->doubling)
    return;
  if (n->short_bytes == 0 || now_ns - n->short_ns >= SHORT_LASTS_NS) {
    n->short_rate = n->short_bytes = 0;
    n->short_wanted = SHORT_REPLIES + SHORT_WINDOWS * (double)r->queued / (double)r->bytes;
  }
  smooth (&n->short_rate, rate);
  if (n->short_wanted > 0)
    n->short_wanted--;
  smooth (&n->short_bytes, (double)r->bytes);
  n->short_ns = now_ns;
}

uint64_t
neighbours_gap (const struct neighbours *n, uint64_t now_ns)
{
  if (n->long_rate == 0 || n->short_bytes == 0 || n->short_wanted > 0
      || now_ns - n->short_ns >= SHORT_LASTS_NS || now_ns < n->off_until_ns)
    return 0;
  double ratio = n->long_rate / n->short_rate;
  return ratio >= LEAST_RATIO ? (uint64_t)(n->short_bytes * (ratio - 1) / MARGIN) : 0;
}

void
neighbours_unread (struct neighbours *n, uint64_t now_ns)
{
  n->off_until_ns = now_ns + OFF_NS;
}
