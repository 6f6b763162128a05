/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The latency of a write.  See latency.h.
 */

#include "config.h"

#include <string.h>

#include "base/clock.h"
#include "mirror/engine/latency.h"

#define LOW_PERIOD_NS ((uint64_t)(5 * NS_PER_S))
#define PART 0.8 /* of the time must be no queue of our own */
#define FASTEST_PERIOD_NS ((uint64_t)(10 * NS_PER_S))

static unsigned
class_of (uint64_t bytes)
{
  unsigned n = bytes == 0 ? 0 : 64 - (unsigned)__builtin_clzll (bytes);
  return n < LATENCY_CLASSES ? n : LATENCY_CLASSES - 1;
}

static void
forget (struct latency *l, bool pressed, uint64_t now_ns)
{
  if (now_ns >= l->low_end_ns) {
    memcpy (l->low[1], l->low[0], sizeof l->low[0]);
    memset (l->low[0], 0, sizeof l->low[0]);
    l->low_end_ns = now_ns + LOW_PERIOD_NS;
  }
  if (pressed && now_ns >= l->fastest_end_ns) {
    l->fastest[1] = l->fastest[0];
    l->fastest[0] = 0;
    l->fastest_end_ns = now_ns + FASTEST_PERIOD_NS;
  }
}

void
latency_add (struct latency *l, const struct latency_reply *r, uint64_t now_ns)
{
  if (r->took_ns == 0)
    return;
  forget (l, r->pressed, now_ns);
  double rate = (double)r->delivered * NS_PER_S / (double)r->took_ns;
  if (rate > l->fastest[0])
    l->fastest[0] = rate;
  struct latency_sample *low = &l->low[0][class_of (r->queued)];
  if (low->took_ns == 0 || r->took_ns < low->took_ns)
    *low = (struct latency_sample){ r->took_ns, r->queued };
}

static double
fastest_of (const struct latency *l)
{
  return l->fastest[0] > l->fastest[1] ? l->fastest[0] : l->fastest[1];
}

uint64_t
latency_behind_ns (const struct latency *l, uint64_t took_ns, uint64_t queued)
{
  double fastest = fastest_of (l);
  double rest = (double)took_ns - (fastest > 0 ? (double)queued / fastest * (double)NS_PER_S : 0);

  return rest > 0 ? (uint64_t)rest : 0;
}

uint64_t
latency_ns (const struct latency *l)
{
  double fastest = fastest_of (l), lowest = -1, shortest = -1;

  if (fastest <= 0)
    return 0;
  for (unsigned i = 0; i < 2 * LATENCY_CLASSES; i++) {
    const struct latency_sample *s = &l->low[i / LATENCY_CLASSES][i % LATENCY_CLASSES];
    if (s->took_ns == 0)
      continue;
    double took = (double)s->took_ns, rest = took - (double)s->queued / fastest * NS_PER_S;
    if (shortest < 0 || took < shortest)
      shortest = took;
    if (rest >= took * PART && (lowest < 0 || rest < lowest))
      lowest = rest;
  }
  if (lowest > shortest)
    lowest = shortest;
  return lowest > 0 ? (uint64_t)lowest : 0;
}
