/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Bandwidth, dirty rate, expected pause, readiness.  See estimate.h.
 */

#include "config.h"

#include <string.h>

#include "base/clock.h"
#include "mirror/job/estimate.h"

#define SAMPLES_TO_BE_READY 2
#define SPAN_NS (50 * NS_PER_MS)
#define NEXT_NS ((uint64_t)(100 * NS_PER_MS)) /* until the next sample */
#define NEXT_SOON_NS ((uint64_t)(10 * NS_PER_MS))
#define PART_NS (10 * NS_PER_MS)        /* busy time that says something about bandwidth */
#define PART_BYTES (UINT64_C (1) << 20) /* moved in it: also that it is not more */

void
estimate_init (struct estimate *e)
{
  memset (e, 0, sizeof *e);
}

static double
rate_of (unsigned nr, const struct estimate_span spans[])
{
  double t = 0, b = 0;
  unsigned n = nr < ESTIMATE_WINDOW ? nr : ESTIMATE_WINDOW;
  for (unsigned i = 0; i < n; i++) {
    t += (double)spans[i].ns;
    b += (double)spans[i].bytes;
  }
  return t > 0 ? b * NS_PER_S / t : 0;
}

/* Add to the last span while that is short, or begin the next one. */
static void
add_span (unsigned *nr, struct estimate_span spans[], uint64_t ns, uint64_t bytes)
{
  struct estimate_span *last = *nr > 0 ? &spans[(*nr - 1) % ESTIMATE_WINDOW] : NULL;

  if (last != NULL && last->ns < SPAN_NS) {
    last->ns += ns;
    last->bytes += bytes;
  } else
    spans[(*nr)++ % ESTIMATE_WINDOW] = (struct estimate_span){ ns, bytes };
}

/* Busy for a part of the sample only, for BUSY_NS. */
static void
add_part (struct estimate *e, uint64_t acked, uint64_t busy_ns, uint64_t limit)
{
  e->part.bytes += acked;
  e->part.ns += busy_ns;
  if (e->part.bytes == 0 || e->part.ns == 0 || (e->part.ns < PART_NS && e->bandwidth > 0))
    return;
  double seen = (double)e->part.bytes * NS_PER_S / (double)e->part.ns;
  if (limit > 0 && seen > (double)limit)
    seen = (double)limit;
  if (seen > e->bandwidth)
    e->bandwidth = seen;
  else if (e->nr_busy == 0 && e->part.bytes >= PART_BYTES)
    e->bandwidth = (e->bandwidth + seen) / 2;
  if (e->part.ns >= PART_NS)
    e->part = (struct estimate_span){ 0, 0 };
}

static void
add_rates (struct estimate *e, const struct estimate_sample *s)
{
  uint64_t ns = s->now_ns - e->last.now_ns;
  if (ns == 0)
    return;

  uint64_t acked = s->acked_bytes - e->last.acked_bytes;
  uint64_t passed = s->passed_bytes - e->last.passed_bytes;
  add_span (&e->nr_moved, e->moved, ns, acked + passed);
  add_span (&e->nr_guest, e->guest, ns, s->dirtied_bytes - e->last.dirtied_bytes);
  e->dirty_rate = rate_of (e->nr_guest, e->guest);
  e->move_rate = rate_of (e->nr_moved, e->moved);

  /* A stretch of holes goes by without using the line: it tells little about bandwidth.  Busy all
   * the time and nothing acknowledged, as the first thing seen: a slow first reply, or a low limit.
   * That is not "no bandwidth". */
  bool holes = passed > acked;
  if (s->queue_full && !holes && (acked > 0 || e->nr_busy > 0)) {
    add_span (&e->nr_busy, e->busy, ns, acked);
    e->bandwidth = rate_of (e->nr_busy, e->busy);
  } else if (!holes || e->bandwidth <= 0)
    add_part (e, acked, s->busy_ns - e->last.busy_ns, s->limit);
  /* A limit that was lowered holds from now on, also where too little is copied to see it; and
   * zeroes, which it does not slow down, tell nothing about data. */
  if (s->limit > 0 && e->bandwidth > (double)s->limit)
    e->bandwidth = (double)s->limit;
}

/* How long the line needs for what is left.  What is on its way arrives while the last block is,
 * and that trip is counted already.  But the line holds no more than it carries in a trip: the rest
 * of what was sent waits in a queue. */
static double
left_ms (const struct estimate *e, const struct estimate_sample *s)
{
  double held = e->bandwidth * e->trip_ms / 1000, line = (double)s->line_bytes;
  double left = (double)s->left_bytes - (line < held ? line : held);

  return left > 0 ? left / e->bandwidth * 1000 : 0;
}

void
estimate_add (struct estimate *e, const struct estimate_sample *s,
              const struct estimate_costs *costs, double max_downtime_ms)
{
  /* Nothing is left, and the guest has written nothing since the last look: what a second sample
   * would guard against, that the guest is faster than the line, is not there. */
  bool calm = e->have_last && s->left_bytes == 0 && s->dirtied_bytes == e->last.dirtied_bytes;
  if (e->have_last)
    add_rates (e, s);
  e->last = *s;
  e->have_last = true;

  /* The last blocks are sent one behind the other, so they take the latency of one write and their
   * bytes.  The flush was measured with the round trip that it takes.  Where nobody writes there
   * are no last blocks; what was measured of writes is not renewed then, and must not count. */
  bool writes = s->left_bytes > 0 || e->dirty_rate > 0;
  uint64_t trip_ns = writes && costs->write_ns > costs->rtt_ns ? costs->write_ns : costs->rtt_ns;
  e->trip_ms = (double)trip_ns / NS_PER_MS;
  e->fixed_ms = (double)costs->flush_ns / NS_PER_MS + e->trip_ms;
  e->pause_known = !costs->no_flush_yet && (s->left_bytes == 0 || e->bandwidth > 0);
  e->expected_pause_ms = e->fixed_ms;
  if (s->left_bytes > 0 && e->bandwidth > 0)
    e->expected_pause_ms += left_ms (e, s);

  if (e->pause_known && e->expected_pause_ms <= max_downtime_ms && s->quarantine_bytes == 0)
    e->fitting += calm ? SAMPLES_TO_BE_READY : 1;
  else
    e->fitting = 0;
  e->ready = e->fitting >= SAMPLES_TO_BE_READY;
}

void
estimate_begin (struct estimate *e, struct estimate_sample first)
{
  e->last = first;
  e->have_last = true;
}

void
estimate_lost (struct estimate *e)
{
  e->fitting = 0;
  e->ready = false;
  e->have_last = false; /* the time without a session says nothing about rates */
  e->nr_guest = e->nr_moved = 0;
}

/* What is left shrinks by a second of the line's time in a second, at most. */
double
estimate_fits_in_ms (const struct estimate *e, double max_downtime_ms)
{
  bool may_fit = e->have_last && e->pause_known && e->fixed_ms <= max_downtime_ms;
  double over = e->expected_pause_ms - max_downtime_ms;

  return may_fit && over > 0 ? over : 0;
}

uint64_t
estimate_next_ns (const struct estimate *e, bool may_be_ready, uint64_t left_bytes,
                  double max_downtime_ms)
{
  /* Where the flush alone takes too long, no sample fits before the next flush. */
  bool in_vain = e->pause_known && e->fixed_ms > max_downtime_ms;
  if (!may_be_ready || in_vain)
    return NEXT_NS;
  if (left_bytes == 0 && e->last.left_bytes > 0)
    return 0;
  if (left_bytes == 0 || e->fitting > 0)
    return NEXT_SOON_NS;
  double fits_ns = estimate_fits_in_ms (e, max_downtime_ms) * NS_PER_MS;
  if (fits_ns <= 0 || fits_ns >= (double)NEXT_NS)
    return NEXT_NS;
  return fits_ns > (double)NEXT_SOON_NS ? (uint64_t)fits_ns : NEXT_SOON_NS;
}

bool
estimate_have_rates (const struct estimate *e)
{
  return e->nr_guest >= ESTIMATE_WINDOW;
}

double
estimate_eta_s (const struct estimate *e, double max_downtime_ms, double dirty_rate)
{
  if (e->ready)
    return 0;
  if (e->bandwidth <= 0)
    return -1;
  double left = (double)e->last.left_bytes;
  if (e->pause_known && e->fixed_ms > max_downtime_ms)
    return -1; /* the flush alone takes longer than is allowed */
  left -= e->bandwidth * max_downtime_ms / 1000;
  if (left <= 0)
    return 0;
  /* Holes go by faster than the line would take them. */
  double net = (e->move_rate > e->bandwidth ? e->move_rate : e->bandwidth) - dirty_rate;
  return net > 0 ? left / net : -1;
}
