/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The window of requests in flight.  See window.h.
 */

#include "config.h"

#include "base/clock.h"
#include "mirror/engine/window.h"

/* The lowest latency is forgotten after two periods, because a path may change. */
#define PERIOD_NS ((uint64_t)(5 * NS_PER_S))
/* Over a line like this, growth by one each round trip would take seconds. */
#define LONG_LINE_NS ((uint64_t)(2 * NS_PER_MS))
/* What to begin with there: a request for each of these, which is 80 MiB/s a copier. */
#define LONG_FIRST_NS ((uint64_t)(3 * NS_PER_MS))
#define LONG_SLACK 0.25 /* of what is in flight may wait, where the latency varies by itself */
#define QUEUE_MIN 2     /* fewer of them wait: one more may be in flight */
#define QUEUE_MAX 4     /* more of them wait: one less */

void
window_init (struct window *w, unsigned short_max, unsigned max)
{
  *w = (struct window){ .depth = max < WINDOW_MIN ? max : WINDOW_MIN,
                        .short_max = short_max < max ? short_max : max,
                        .max = max };
}

void
window_expect (struct window *w, uint64_t rtt_ns)
{
  uint64_t first = rtt_ns / LONG_FIRST_NS;

  if (rtt_ns < LONG_LINE_NS || first <= w->depth)
    return;
  w->depth = first < w->max ? (unsigned)first : w->max;
}

static uint64_t
lowest (const struct window *w)
{
  uint64_t a = w->lowest_ns[0], b = w->lowest_ns[1];
  return a == 0 || (b != 0 && b < a) ? b : a;
}

/* A line with a round trip of milliseconds.  What was not filled is not grown. */
static void
judge_long (struct window *w, double mean_ns)
{
  double flight = (double)w->sum_flight / w->replies;
  double held = flight * (double)lowest (w) / mean_ns, queue = flight - held;

  if (queue > QUEUE_MAX + flight * LONG_SLACK)
    w->depth = (unsigned)(held * (1 + LONG_SLACK)) + QUEUE_MAX;
  else if (queue < QUEUE_MIN + flight * LONG_SLACK / 2 && flight * 2 >= w->depth)
    w->depth *= 2;
  if (w->depth > w->max)
    w->depth = w->max;
  if (w->depth < WINDOW_MIN)
    w->depth = WINDOW_MIN;
}

static void
judge_short (struct window *w, double mean_ns)
{
  double queue = w->depth * (1 - (double)lowest (w) / mean_ns);

  if (queue < QUEUE_MIN && w->depth < w->short_max)
    w->depth++;
  if ((queue > QUEUE_MAX || w->depth > w->short_max) && w->depth > WINDOW_MIN)
    w->depth--;
}

void
window_reply (struct window *w, uint64_t latency_ns, unsigned in_flight, uint64_t now_ns)
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
  w->sum_flight += in_flight;
  if (++w->replies < w->depth)
    return;

  double mean_ns = (double)w->sum_ns / w->replies;
  unsigned before = w->depth;
  if (lowest (w) >= LONG_LINE_NS)
    judge_long (w, mean_ns);
  else
    judge_short (w, mean_ns);
  w->doubling = w->depth > before + 1;
  w->replies = 0;
  w->sum_ns = w->sum_flight = 0;
}
