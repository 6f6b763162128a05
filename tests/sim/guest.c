/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The modelled guests.  See guest.h.
 */

#include "config.h"

#include <math.h>

#include "tests/sim/guest.h"

#define ZIPF_EXPONENT 1.1
#define SCATTER                                                                                    \
  UINT64_C (0x9e3779b97f4a7c15) /* odd, so that no two blocks meet where their number is a power   \
                                   of two */
#define REWRITE_BYTES (UINT64_C (4) << 20)
#define HOT_PART 20   /* 1/20 of the disk ... */
#define HOT_WRITES 10 /* ... gets all but 1/10 of the writes */
#define BURST_MS 1000
#define BURST_PERIOD_MS 4000

const char *
sim_guest_name (enum sim_guest g)
{
  static const char *const names[]
      = { "uniform", "zipf", "hot-spot", "sequential", "bursty", "stop-start", "rewrite" };
  return names[g];
}

/* xorshift64*. */
uint64_t
guest_random (struct guest *g)
{
  g->random ^= g->random >> 12;
  g->random ^= g->random << 25;
  g->random ^= g->random >> 27;
  return g->random * UINT64_C (2685821657736338717);
}

static double
unit (struct guest *g)
{
  return (double)(guest_random (g) >> 11) / 9007199254740992.0;
}

void
guest_init (struct guest *g, const struct sim_options *o)
{
  *g = (struct guest){
    .kind = o->guest,
    .nr_blocks = o->disk_bytes / SIM_BLOCK,
    .request_blocks = o->request_blocks,
    .rate = o->guest_rate,
    .on_ms = (uint64_t)(o->on_s * 1000),
    .random = o->seed * UINT64_C (7919) + 12345,
  };
  g->zipf_norm = 1 - pow ((double)g->nr_blocks, 1 - ZIPF_EXPONENT);
}

/* Draw a rank from the continuous distribution, then scatter the ranks over the disk. */
static uint64_t
zipf (struct guest *g)
{
  double rank = pow (1 - unit (g) * g->zipf_norm, 1 / (1 - ZIPF_EXPONENT)) - 1;
  return (uint64_t)rank * SCATTER % g->nr_blocks;
}

uint64_t
guest_next (struct guest *g)
{
  uint64_t n = g->request_blocks, places = g->nr_blocks / n, hot = places / HOT_PART, at;

  switch (g->kind) {
  case SIM_ZIPF:
    return zipf (g) / n * n;
  case SIM_HOT_SPOT: /* somewhere in the middle */
    if (guest_random (g) % HOT_WRITES != 0)
      return (places / 3 + guest_random (g) % hot) * n;
    break;
  case SIM_SEQUENTIAL:
    at = g->position;
    g->position = (g->position + n) % (places * n);
    return at;
  case SIM_REWRITE:
    return places / 3 * n + guest_random (g) % (REWRITE_BYTES / SIM_BLOCK / n) * n;
  default:
    break;
  }
  return guest_random (g) % places * n;
}

double
guest_rate (const struct guest *g, uint64_t now_ms)
{
  if (g->kind == SIM_BURSTY)
    return now_ms % BURST_PERIOD_MS < BURST_MS ? g->rate * BURST_PERIOD_MS / BURST_MS : 0;
  if (g->kind == SIM_STOP_START)
    return now_ms / g->on_ms % 2 == 0 ? g->rate : 0;
  return g->rate;
}
