/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The windows of requests in flight.  See window.h.
 */

#include "config.h"

#include "base/clock.h"
#include "mirror/engine/window.h"

/* The lowest latency is forgotten after two periods at most, because a path may change. */
#define PERIOD_NS ((uint64_t)(10 * NS_PER_S))
/* Over a line like this, growth by one each round trip would take seconds. */
#define LONG_LINE_NS ((uint64_t)(2 * NS_PER_MS))
/* What to begin with there: a request for each of these, which is 80 MiB/s a copier. */
#define LONG_FIRST_NS ((uint64_t)(3 * NS_PER_MS))
#define LONG_SLACK 0.25 /* of what is in flight may wait, where the latency varies by itself */
#define QUEUE_MIN 2     /* fewer of them wait: one more may be in flight */
#define QUEUE_MAX 4     /* more of them wait: one less */
/* A queue of this time is long enough, but one request may always wait. */
#define QUEUE_NS (50.0 * NS_PER_MS)
#define LONG_MIN 2
/* While the lowest latency is measured, this part of what the line holds is in flight.  It is
 * measured if the latency has grown by that factor, or else all replies show it. */
#define PROBE_PART 0.75
#define PROBE_GROWN 1.25

void
window_init (struct window *w, struct window_lowest *lowest, unsigned short_max, unsigned max)
{
  *w = (struct window){ .lowest = lowest,
                        .depth = max < WINDOW_MIN ? max : WINDOW_MIN,
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

/* ---- the lowest latency ---- */

static uint64_t
lowest (const struct window *w)
{
  uint64_t a = atomic_load_explicit (&w->lowest->ns[0], memory_order_relaxed);
  uint64_t b = atomic_load_explicit (&w->lowest->ns[1], memory_order_relaxed);
  return a == 0 || (b != 0 && b < a) ? b : a;
}

/* A latency that another copier notes at the same moment may get lost.  There will be more. */
static void
note_latency (struct window_lowest *l, uint64_t period, uint64_t latency_ns)
{
  uint64_t before = atomic_load_explicit (&l->period, memory_order_relaxed);

  if (before != period && atomic_compare_exchange_strong (&l->period, &before, period)) {
    atomic_store_explicit (&l->ns[period % 2], 0, memory_order_relaxed);
    if (before + 1 != period)
      atomic_store_explicit (&l->ns[(period + 1) % 2], 0, memory_order_relaxed);
  }
  uint64_t now = atomic_load_explicit (&l->ns[period % 2], memory_order_relaxed);
  if (now == 0 || latency_ns < now)
    atomic_store_explicit (&l->ns[period % 2], latency_ns, memory_order_relaxed);
}

/* ---- one window ---- */

/* A line with a round trip of milliseconds.  What was not filled is not grown. */
static void
judge_long (struct window *w, double mean_ns)
{
  double flight = w->sum_flight / w->replies;
  double held = flight * (double)lowest (w) / mean_ns, queue = flight - held;
  double most = QUEUE_NS / (mean_ns / flight);

  if (most > QUEUE_MAX)
    most = QUEUE_MAX;
  if (most < 1)
    most = 1;
  w->held = held;
  if (queue > most + flight * LONG_SLACK)
    w->depth = (unsigned)(held * (1 + LONG_SLACK) + most);
  else if (queue < most * QUEUE_MIN / QUEUE_MAX + flight * LONG_SLACK / 2 && flight * 2 >= w->depth)
    w->depth *= 2;
  if (w->depth < LONG_MIN)
    w->depth = LONG_MIN;
  if (w->depth > w->max)
    w->depth = w->max;
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

static void
begin_to_judge (struct window *w)
{
  w->replies = 0;
  w->sum_ns = 0;
  w->sum_flight = 0;
}

/* Another period begins, as seen by this copier. */
static void
begin_period (struct window *w, uint64_t latency_ns, double in_flight, uint64_t now_ns)
{
  double low = (double)lowest (w), grown = (double)latency_ns / low;

  if (low < (double)LONG_LINE_NS || grown < PROBE_GROWN || w->depth <= LONG_MIN)
    return;
  double held = in_flight / grown * PROBE_PART;
  w->probe_depth = held > 1 ? (unsigned)held : 1;
  /* All that is in flight has to be answered, and then some requests that find no queue. */
  w->probe_end_ns = now_ns + latency_ns + (uint64_t)(1.5 * low);
}

static bool
probing (struct window *w, uint64_t now_ns)
{
  if (w->probe_end_ns == 0)
    return false;
  if (now_ns < w->probe_end_ns)
    return true;
  w->probe_end_ns = 0;
  atomic_store_explicit (&w->lowest->ns[(w->period + 1) % 2], 0, memory_order_relaxed);
  begin_to_judge (w);
  return true;
}

void
window_reply (struct window *w, uint64_t latency_ns, double in_flight, uint64_t now_ns)
{
  if (latency_ns == 0)
    latency_ns = 1;
  if (w->period != now_ns / PERIOD_NS) {
    w->period = now_ns / PERIOD_NS;
    begin_period (w, latency_ns, in_flight, now_ns);
  }
  note_latency (w->lowest, w->period, latency_ns);
  if (probing (w, now_ns))
    return;
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
  w->judged = true;
  w->doubling = w->depth > before + 1;
  begin_to_judge (w);
}

unsigned
window_depth (const struct window *w)
{
  return w->probe_end_ns != 0 ? w->probe_depth : w->depth;
}

/* ---- both windows ---- */

void
windows_init (struct windows *ws, struct window_lowest lowest[2], uint32_t whole_bytes,
              uint32_t scattered_bytes, unsigned short_max, unsigned max_whole,
              unsigned max_scattered)
{
  *ws = (struct windows){ .whole_bytes = whole_bytes, .scattered_bytes = scattered_bytes };
  window_init (&ws->whole, &lowest[0], short_max, max_whole);
  window_init (&ws->scattered, &lowest[1], short_max, max_scattered);
}

static bool
is_scattered (const struct windows *ws, uint64_t bytes)
{
  return bytes > 0 && bytes <= ws->scattered_bytes;
}

void
windows_add (const struct windows *ws, struct window_load *l, uint64_t bytes)
{
  if (is_scattered (ws, bytes)) {
    l->nr_scattered++;
    return;
  }
  l->nr_whole++;
  l->whole_bytes += bytes < ws->whole_bytes ? bytes : ws->whole_bytes;
}

void
windows_remove (const struct windows *ws, struct window_load *l, uint64_t bytes)
{
  if (is_scattered (ws, bytes)) {
    l->nr_scattered--;
    return;
  }
  l->nr_whole--;
  l->whole_bytes -= bytes < ws->whole_bytes ? bytes : ws->whole_bytes;
}

/* How many scattered blocks may be in flight?  Before it is known: as many as take the bytes of the
 * whole requests that a long line holds.  What waits in the queue is left out, so that the queue
 * becomes empty, and the lowest latency shows. */
static double
scattered_depth (const struct windows *ws)
{
  double depth = window_depth (&ws->whole);

  if (ws->scattered.judged)
    return window_depth (&ws->scattered);
  double held = ws->whole.held * ws->whole_bytes / ws->scattered_bytes;
  if (lowest (&ws->whole) >= LONG_LINE_NS && held > depth)
    depth = held;
  return depth < ws->scattered.max ? depth : ws->scattered.max;
}

double
windows_filled (const struct windows *ws, const struct window_load *l)
{
  double whole = window_depth (&ws->whole);

  if (ws->scattered_bytes == 0)
    return l->nr_whole / whole;
  double scattered = scattered_depth (ws);
  double by_number = l->nr_whole / scattered;
  double by_bytes = (double)l->whole_bytes / ws->whole_bytes / whole;
  return l->nr_scattered / scattered + (by_bytes > by_number ? by_bytes : by_number);
}

bool
windows_change (const struct windows *ws, uint64_t bytes)
{
  const struct window *w = is_scattered (ws, bytes) ? &ws->scattered : &ws->whole;
  return w->doubling || w->probe_end_ns != 0;
}

double
windows_in_flight (const struct windows *ws, const struct window_load *l, uint64_t bytes)
{
  return windows_filled (ws, l)
         * (is_scattered (ws, bytes) ? scattered_depth (ws) : window_depth (&ws->whole));
}

void
windows_reply (struct windows *ws, uint64_t bytes, uint64_t latency_ns, double in_flight,
               uint64_t now_ns)
{
  if (!is_scattered (ws, bytes)) {
    if (bytes >= ws->whole_bytes / 2 || ws->scattered_bytes == 0)
      window_reply (&ws->whole, latency_ns, in_flight, now_ns);
    return;
  }
  if (!ws->scattered.judged) {
    ws->scattered.depth = (unsigned)scattered_depth (ws);
    if (ws->scattered.replies == 0) /* the first ones wait behind whole requests */
      note_latency (ws->scattered.lowest, now_ns / PERIOD_NS, lowest (&ws->whole));
  }
  window_reply (&ws->scattered, latency_ns, in_flight, now_ns);
}
