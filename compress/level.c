/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * How strongly to compress.  See level.h.
 */

#include "config.h"

#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "compress/level.h"

#define WINDOW_NS ((uint64_t)(250 * NS_PER_MS))
#define WINDOW_MAX_NS ((uint64_t)(2 * NS_PER_S)) /* of a slow line, which answers seldom */
#define WINDOW_REPLIES 16
#define SAMPLE_NS                                                                                  \
  ((uint64_t)(25 * NS_PER_MS)) /* one write so often is a sample for the model ... */
#define SAMPLE_COST 20         /* ... or, on a slow processor, after so many times what it took */
#define LOOK_NS ((uint64_t)NS_PER_S) /* between two looks that promise nothing */
#define PATIENCE_MAX_NS ((uint64_t)(60 * NS_PER_S))
#define RECHECK_NS ((uint64_t)(60 * NS_PER_S)) /* is compression still worth it? */
#define FADE_BYTES (4.0 * 1024 * 1024)

#define PROMISE 1.10 /* a higher level must promise so much more ... */
#define BETTER 1.05  /* ... and keep so much of it */
#define AS_GOOD 0.98 /* a lower one may be so much slower */
#define BUSY 0.7     /* of what the compressor can do: it is the limit, not the line */

static const int steps[LEVEL_STEPS] = { 0, 1, 3, 6, 9 };

void
level_init (struct level *l, int max, unsigned nr_threads, uint64_t now_ns)
{
  *l = (struct level){ .nr_threads = nr_threads, .patience_ns = LOOK_NS };
  while (l->top + 1 < LEVEL_STEPS && steps[l->top + 1] <= max)
    l->top++;
  l->next_try_ns = now_ns;
}

int
level_next (struct level *l, uint64_t now_ns, uint32_t *tag)
{
  uint64_t pause = SAMPLE_COST * l->sample_took_ns;

  if (pause < SAMPLE_NS)
    pause = SAMPLE_NS;
  *tag = l->tag;
  /* Samples are of use only if a trial may begin at the end of this window. */
  if (l->at < l->top && !l->trying && now_ns + WINDOW_NS >= l->next_try_ns
      && now_ns - l->sampled_ns >= pause) {
    l->sampled_ns = now_ns;
    return steps[l->at + 1];
  }
  return steps[l->at];
}

void
level_compressed (struct level *l, int level, uint64_t content, uint64_t packed, uint64_t ns)
{
  for (unsigned i = 1; i < LEVEL_STEPS; i++) {
    struct level_cost *c = &l->cost[i];

    if (steps[i] != level)
      continue;
    if (i == l->at + 1)
      l->sample_took_ns = ns;
    c->content += (double)content;
    c->packed += (double)packed;
    c->seconds += (double)ns / NS_PER_S;
    if (c->content > FADE_BYTES) {
      c->content /= 2;
      c->packed /= 2;
      c->seconds /= 2;
    }
  }
}

void
level_idle (struct level *l)
{
  l->idle = true;
}

/* ---- the decision ---- */

/* What the compressor can do at STEP, bytes of content a second.  0: nobody knows. */
static double
speed (const struct level *l, unsigned step)
{
  const struct level_cost *c = &l->cost[step];

  if (step == 0)
    return INFINITY;
  return c->seconds > 0 ? c->content / c->seconds * l->nr_threads : 0;
}

/* The rate that the model promises for STEP on a line that moves LINE bytes a second. */
static double
promise (const struct level *l, unsigned step, double line)
{
  const struct level_cost *c = &l->cost[step];
  double by_line = step == 0 ? line : c->packed > 0 ? line * c->content / c->packed : 0;
  double by_processor = speed (l, step);

  return by_line < by_processor ? by_line : by_processor;
}

static void
change (struct level *l, unsigned to)
{
  l->at = to;
  l->tag++;
  l->begun_ns = 0;
}

static void
try (struct level *l, unsigned to, double rate)
{
  l->trying = true;
  l->before = l->at;
  l->rate_before = rate;
  change (l, to);
}

static void
judge_trial (struct level *l, double rate, uint64_t now_ns)
{
  bool up = l->at > l->before;

  l->trying = false;
  if (rate >= l->rate_before * (up ? BETTER : AS_GOOD)) {
    l->patience_ns = LOOK_NS;
    l->next_try_ns = now_ns;
    l->recheck_ns = now_ns + RECHECK_NS;
    return;
  }
  change (l, l->before);
  l->next_try_ns = now_ns + l->patience_ns;
  l->recheck_ns = now_ns + RECHECK_NS;
  if (l->patience_ns < PATIENCE_MAX_NS)
    l->patience_ns *= 2;
}

/* A window has ended: RATE is that of the content, LINE that of the line. */
static void
judge (struct level *l, double rate, double line, uint64_t now_ns)
{
  if (l->trying) {
    judge_trial (l, rate, now_ns);
    return;
  }
  if (now_ns < l->next_try_ns)
    return;
  bool line_is_the_limit = l->at == 0 || rate < BUSY * speed (l, l->at);
  if (l->at < l->top && promise (l, l->at + 1, line) >= PROMISE * rate)
    try (l, l->at + 1, rate);
  else if (l->at > 0 && (!line_is_the_limit || now_ns >= l->recheck_ns))
    try (l, l->at - 1, rate);
  else
    l->next_try_ns = now_ns + LOOK_NS;
}

void
level_replied (struct level *l, uint32_t tag, uint64_t content, uint64_t wire, uint64_t now_ns)
{
  if (tag != l->tag)
    return;
  if (l->begun_ns == 0 || l->idle) {
    l->begun_ns = now_ns;
    l->content = l->wire = 0;
    l->replies = 0;
    l->idle = false;
    return;
  }
  l->content += (double)content;
  l->wire += (double)wire;
  l->replies++;
  uint64_t took = now_ns - l->begun_ns;
  if (took < WINDOW_NS || (l->replies < WINDOW_REPLIES && took < WINDOW_MAX_NS))
    return;
  double seconds = (double)took / NS_PER_S;
  l->begun_ns = 0;
  judge (l, l->content / seconds, l->wire / seconds, now_ns);
}
