/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The window of requests in flight.  See window.h.
 */

#include "config.h"

#include "base/clock.h"
#include "mirror/engine/window.h"

/* The lowest latency is forgotten after two periods, because a path may change. */
#define PERIOD_NS ((uint64_t)(5 * NS_PER_S))
#define QUEUE_MIN 2 /* fewer of them wait: one more may be in flight */
#define QUEUE_MAX 4 /* more of them wait: one less */

void
window_init (struct window *w, unsigned max)
{
  *w = (struct window){ .depth = max < WINDOW_MIN ? max : WINDOW_MIN, .max = max };
}

static uint64_t
lowest (const struct window *w)
{
  uint64_t a = w->lowest_ns[0], b = w->lowest_ns[1];
  return a == 0 || (b != 0 && b < a) ? b : a;
}

void
window_reply (struct window *w, uint64_t latency_ns, uint64_t now_ns)
{
  if (now_ns >= w->period_end_ns) {
    w->lowest_ns[1] = w->lowest_ns[0];
    w->lowest_ns[0] = 0;
    w->period_end_ns = now_ns + PERIOD_NS;
  }
  if (latency_ns == 0)
    latency_ns = 1;
  if (w->lowest_ns[0] == 0 || latency_ns < w->lowest_ns[0])
    w->lowest_ns[0] = latency_ns;
  w->sum_ns += latency_ns;
  if (++w->replies < w->depth)
    return;

  double mean = (double)w->sum_ns / w->replies;
  double queue = w->depth * (1 - (double)lowest (w) / mean);
  if (queue < QUEUE_MIN && w->depth < w->max)
    w->depth++;
  else if (queue > QUEUE_MAX && w->depth > WINDOW_MIN)
    w->depth--;
  w->replies = 0;
  w->sum_ns = 0;
}
