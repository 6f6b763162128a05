/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * How strongly to compress, against a model of a line, of processors, and of a disk at the other
 * end: it never takes clearly longer than without compression, and much shorter where it can.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "tests/unit/unit.h"

#include "compress/level.h"

#define REQUEST (256.0 * 1024)
#define MIB (1024.0 * 1024)
#define SECOND UINT64_C (1000000000)
#define IN_FLIGHT 32

/* A world: bytes a second of the line and of the destination's disk, of the source's disk, and of
 * one thread that compresses at level 1; and what a byte becomes at each level. */
struct world {
  double line, disk, source, compressor;
  double ratio[10]; /* by zstd's level; 0: as at the level below */
};

static const double root_fs[10] = { 1, .42, 0, .37, 0, 0, .355, 0, 0, .35 };
static const double noise[10] = { 1 };

static double
ratio_of (const struct world *w, int level)
{
  while (w->ratio[level] == 0)
    level--;
  return w->ratio[level];
}

/* Slower with each level, as zstd is. */
static double
speed_of (const struct world *w, int level)
{
  return w->compressor / (1 + 0.45 * (level - 1));
}

static double
max (double a, double b)
{
  return a > b ? a : b;
}

/* Send BYTES.  Each stage (source, compressor, line, disk) works on one request after the other,
 * the compressor on two.  Returns the seconds it takes. */
static double
run (const struct world *w, struct level *l, double bytes)
{
  double source = 0, line = 0, disk = 0, thread[2] = { 0, 0 }, back[IN_FLIGHT] = { 0 };
  struct reply {
    uint32_t tag;
    double wire;
  } sent[IN_FLIGHT];
  unsigned n = 0;

  for (double done = 0; done < bytes; done += REQUEST, n++) {
    unsigned place = n % IN_FLIGHT;
    struct reply *r = &sent[place];
    if (n >= IN_FLIGHT)
      level_replied (l, r->tag, REQUEST, (uint64_t)r->wire, (uint64_t)(back[place] * 1e9) + 1);
    source = max (source, back[place]) + REQUEST / w->source;
    double at = source;
    r->wire = REQUEST;
    int level = level_next (l, (uint64_t)(at * 1e9) + 1, &r->tag);
    if (level > 0) {
      unsigned t = thread[0] <= thread[1] ? 0 : 1;
      double took = REQUEST / speed_of (w, level);
      thread[t] = max (thread[t], at) + took;
      at = thread[t];
      r->wire = REQUEST * ratio_of (w, level);
      level_compressed (l, level, REQUEST, (uint64_t)r->wire, (uint64_t)(took * 1e9));
    }
    line = max (line, at) + r->wire / w->line;
    disk = max (disk, line) + REQUEST / w->disk;
    back[place] = disk;
  }
  return disk;
}

/* How long it takes with compression, divided by the time without. */
static double
gain (const struct world *w, int max_level, double bytes, unsigned *at)
{
  struct level l;
  double slowest = w->line < w->disk ? w->line : w->disk;

  if (w->source < slowest)
    slowest = w->source;
  level_init (&l, max_level, 2, 1);
  double with = run (w, &l, bytes);
  *at = l.at;
  return with / (bytes / slowest);
}

#define FAST (4096 * MIB)

static struct world
world (double line, double disk, double source, double compressor, const double ratio[10])
{
  struct world w = { .line = line, .disk = disk, .source = source, .compressor = compressor };

  memcpy (w.ratio, ratio, sizeof w.ratio);
  return w;
}

Test (level, thin_lines_gain_much)
{
  const double lines[] = { 0.5, 1, 2, 10, 30, 60, 100 };

  for (unsigned i = 0; i < sizeof lines / sizeof lines[0]; i++) {
    struct world w = world (lines[i] * MIB, FAST, FAST, 350 * MIB, root_fs);
    unsigned at;
    double g = gain (&w, 6, lines[i] * 60 * MIB, &at);
    cr_assert_lt (g, 0.6, "%g MiB/s: %.2f", lines[i], g);
    cr_assert_gt (at, 0);
  }
}

Test (level, fast_lines_lose_nothing)
{
  const double lines[] = { 700, 1000, 2000, 4000 };

  for (unsigned i = 0; i < sizeof lines / sizeof lines[0]; i++)
    for (double seconds = 2; seconds <= 200; seconds *= 10) {
      struct world w = world (lines[i] * MIB, FAST, FAST, 250 * MIB, root_fs);
      unsigned at;
      double g = gain (&w, 6, lines[i] * seconds * MIB, &at);
      cr_assert_lt (g, 1.05, "%g MiB/s for %g s: %.3f", lines[i], seconds, g);
      cr_assert_eq (at, 0);
    }
}

Test (level, what_cannot_be_compressed_loses_nothing)
{
  for (double line = 1; line <= 4096; line *= 4) {
    struct world w = world (line * MIB, FAST, FAST, 300 * MIB, noise);
    unsigned at;
    double g = gain (&w, 9, line * 60 * MIB, &at);
    cr_assert_lt (g, 1.05, "%g MiB/s: %.3f", line, g);
    cr_assert_eq (at, 0);
  }
}

/* The disk at the other end, or at this one, is the limit: compression can neither help nor harm,
 * and must not stay.  The model is too hopeful here, so only trials tell. */
Test (level, slow_disks)
{
  for (double disk = 50; disk <= 500; disk += 50)
    for (unsigned which = 0; which < 2; which++) {
      struct world w = world (FAST, which != 0 ? FAST : disk * MIB, which != 0 ? disk * MIB : FAST,
                              150 * MIB, root_fs);
      unsigned at;
      double g = gain (&w, 6, disk * 100 * MIB, &at);
      cr_assert_lt (g, 1.05, "%g MiB/s: %.3f", disk, g);
      cr_assert_eq (at, 0, "%g MiB/s: step %u", disk, at);
    }
}

Test (level, slow_processors)
{
  for (double line = 10; line <= 640; line *= 2)
    for (double compressor = 5; compressor <= 640; compressor *= 2) {
      struct world w = world (line * MIB, FAST, FAST, compressor * MIB, root_fs);
      unsigned at;
      double g = gain (&w, 9, line * 100 * MIB, &at);
      cr_assert_lt (g, 1.05, "line %g, compressor %g: %.3f", line, compressor, g);
    }
}

/* The line gets faster, and thin again, in the middle. */
Test (level, follows_the_line)
{
  struct world w = world (10 * MIB, FAST, FAST, 300 * MIB, root_fs);
  struct level l;

  level_init (&l, 6, 2, 1);
  run (&w, &l, 600 * MIB);
  cr_assert_gt (l.at, 0);
  w.line = FAST;
  l.begun_ns = l.next_try_ns = l.recheck_ns = 0; /* the model's clock begins anew */
  l.sampled_ns = 0;
  run (&w, &l, 60 * 600 * MIB);
  cr_assert_eq (l.at, 0);
  w.line = 10 * MIB;
  l.begun_ns = l.next_try_ns = l.sampled_ns = 0;
  run (&w, &l, 600 * MIB);
  cr_assert_gt (l.at, 0);
}

Test (level, never_above_what_is_allowed)
{
  struct world w = world (1 * MIB, FAST, FAST, 300 * MIB, root_fs);
  struct level l;

  level_init (&l, 2, 2, 1);
  cr_assert_eq (l.top, 1);
  run (&w, &l, 60 * MIB);
  cr_assert_eq (l.at, 1);
  level_init (&l, LEVEL_MAX, 2, 1);
  cr_assert_eq (l.top, LEVEL_STEPS - 1);
}

/* A line that is not full says nothing. */
Test (level, idle_moments_are_not_judged)
{
  struct level l;
  uint32_t tag;

  level_init (&l, 6, 2, 1);
  for (uint64_t now = 1; now < 100 * SECOND; now += SECOND / 50) {
    int level = level_next (&l, now, &tag);
    if (level > 0)
      level_compressed (&l, level, 65536, 20000, 100000);
    level_replied (&l, tag, 65536, 65536, now + 1000);
    level_idle (&l);
  }
  cr_assert_eq (l.at, 0);
  cr_assert (!l.trying);
}
