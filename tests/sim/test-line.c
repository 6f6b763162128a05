/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proves, over modelled lines (line.h), that the window fills a line without filling its buffers,
 * that scattered writes keep up with a guest that the line can carry, that the latency, the
 * expected pause and "ready" are what the line makes of them, and that clean blocks are sent only
 * where that saves time.
 */

#include "config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/unit/unit.h"

#include "mirror/engine/engine.h"
#include "tests/sim/line.h"

#define MIB 1048576.0
#define MBIT 125000.0

static const double rtts[] = { 0.1, 1, 10, 50, 100, 300 };
static const double rates[] = { 1 * MBIT, 10 * MBIT, 100 * MBIT, 1000 * MBIT, 40000 * MBIT };
static const unsigned threads[] = { 1, 16, 64 };
#define NR(a) (sizeof (a) / sizeof (a)[0])

/* The disk takes the line some seconds and many round trips, whatever the line. */
static struct line_model
model (double rtt_ms, double rate, unsigned nr_threads)
{
  double whole = rate * 4, trips = 60 * (rtt_ms + 0.2) / 1000 * 300 * MIB;
  double most = 64.0 * ENGINE_REQUEST_BYTES / ((rtt_ms + 0.2) / 1000) * 4;
  double bytes = whole > trips && rtt_ms >= 10 ? trips : whole;

  if (bytes > most)
    bytes = most;
  return (struct line_model){
    .rtt_ms = rtt_ms,
    .rate = rate,
    .threads = nr_threads,
    .service_ms = 0.1,
    .max_downtime_ms = 300,
    .disk_bytes = (uint64_t)(bytes < 4 * MIB ? 4 * MIB : bytes),
    .after_s = 5 + 2 * ENGINE_DEPTH * ENGINE_REQUEST_BYTES / rate, /* its queue is gone */
    .seed = 1
  };
}

/* What the line and the server carry, in requests of BYTES of which MOST may be in flight. */
static double
capacity (const struct line_model *m, double bytes, double most)
{
  double by_server = m->threads / (m->service_ms / 1000) * bytes;
  double by_window = most * bytes / (line_alone_ms (m, bytes) / 1000);
  double c = m->rate < by_server ? m->rate : by_server;
  return c < by_window ? c : by_window;
}

static const char *
name (const struct line_model *m)
{
  static char text[160];
  snprintf (text, sizeof text,
            "%g ms, %g Mbit/s, %u threads of %g ms, stalls %g ms, %.0f writes/s, seed %u",
            m->rtt_ms, m->rate / MBIT, m->threads, m->service_ms, m->stall_ms, m->writes, m->seed);
  return text;
}

/* What holds for each model. */
static void
check (const struct line_model *m)
{
  struct line_result r = line_run (m);
  double whole = capacity (m, ENGINE_REQUEST_BYTES, ENGINE_MAX_DEPTH);
  double alone = m->rtt_ms + m->service_ms, stalls = m->stall_ms;

  /* It is filled ... */
  if (stalls == 0)
    cr_assert_geq (r.pass_rate, 0.7 * whole, "%s: %.2f of %.2f MiB/s", name (m), r.pass_rate / MIB,
                   whole / MIB);
  /* ... and its buffer is not. */
  double queue = ENGINE_DEPTH * ENGINE_REQUEST_BYTES / whole * 1000;
  cr_assert_leq (r.pass_latency_ms, 2 * alone + queue + stalls,
                 "%s: a request takes %.1f ms, a lone one %.1f", name (m), r.pass_latency_ms,
                 alone);
  /* The queue of our own is no latency. */
  cr_assert_leq (r.latency_ms, 1.6 * alone + 4096 / m->rate * 1000, "%s: %.1f ms", name (m),
                 r.latency_ms);
  double request = ENGINE_REQUEST_BYTES / m->rate * 1000;
  cr_assert_leq (r.pass_told_ms, 1.6 * alone + stalls + 0.1 * request, "%s: %.1f ms", name (m),
                 r.pass_told_ms);
  /* The guest's writes are sent as fast as it makes them, */
  cr_assert_leq (r.behind_bytes, m->writes * 4096 * (4 * alone + 2 * stalls + 100) / 1000,
                 "%s: %.0f KiB behind", name (m), r.behind_bytes / 1024);
  /* the pause is what was expected, */
  if (stalls == 0) {
    cr_assert_leq (r.pause_ms, 1.6 * r.expected_ms + 5 + 2 * 4096 / m->rate * 1000,
                   "%s: paused for %.1f ms, expected %.1f", name (m), r.pause_ms, r.expected_ms);
    /* and the job is ready where, and only where, that is allowed. */
    double least = m->rtt_ms + alone;
    if (least > m->max_downtime_ms)
      cr_assert_not (r.ready, "%s: ready", name (m));
    if (least * 2 + 20 < m->max_downtime_ms)
      cr_assert (r.ready, "%s: not ready, expecting %.1f ms", name (m), r.expected_ms);
  }
}

/* Every line with every server, and a guest that wants a fifth of what they carry. */
Test (line, every_line_ends_as_the_rule_says)
{
  for (unsigned i = 0; i < NR (rtts); i++)
    for (unsigned k = 0; k < NR (rates); k++)
      for (unsigned t = 0; t < NR (threads); t++) {
        struct line_model m = model (rtts[i], rates[k], threads[t]);
        double most = rtts[i] < 2 ? ENGINE_DEPTH : ENGINE_SHORT_SLOTS;
        m.writes = capacity (&m, 4096, most) / 4096 / 5;
        if (m.writes > 10000)
          m.writes = 10000;
        check (&m);
      }
}

Test (line, loss_as_stalls)
{
  for (unsigned i = 0; i < NR (rtts); i++)
    for (unsigned k = 1; k < 4; k++) {
      struct line_model m = model (rtts[i], rates[k], 16);
      m.stall_every_s = 0.7;
      m.stall_ms = 200;
      m.writes = 100;
      check (&m);
    }
}

/* A pass for many minutes does not fill the line's buffer little by little. */
Test (line, a_long_pass)
{
  for (unsigned i = 1; i < 5; i++)
    for (unsigned k = 1; k < 4; k++) {
      struct line_model m = model (rtts[i], rates[k], 16);
      m.disk_bytes = (uint64_t)(rates[k] * 300);
      struct line_result r = line_run (&m);
      double request = ENGINE_REQUEST_BYTES / rates[k] * 1000;
      cr_assert_leq (r.pass_latency_ms, 1.5 * (m.rtt_ms + m.service_ms) + 4 * request + 60,
                     "%s: a request takes %.1f ms", name (&m), r.pass_latency_ms);
      cr_assert_geq (r.pass_rate, 0.95 * rates[k], "%s: %.2f MiB/s", name (&m), r.pass_rate / MIB);
    }
}

/* Where a pass of whole requests ends and one of scattered blocks begins, the line stays full. */
Test (line, from_whole_requests_to_scattered_blocks)
{
  for (unsigned i = 0; i < 5; i++)
    for (unsigned k = 1; k < 4; k++) {
      struct line_model m = model (rtts[i], rates[k], 16);
      unsigned n = (unsigned)(rates[k] * (0.3 + 5 * rtts[i] / 1000) / 4096);
      double part = line_change (&m, n);
      unsigned most = rtts[i] < 2 ? ENGINE_DEPTH : ENGINE_SHORT_SLOTS;
      if (rates[k] * rtts[i] / 1000 > most * 4096.0)
        continue; /* more than may be in flight */
      cr_assert_geq (part, 0.85, "%s, %u blocks: %.2f", name (&m), n, part);
    }
}

/* The server answers late, however little is asked of it. */
Test (line, a_slow_server)
{
  for (unsigned k = 2; k < NR (rates); k++) {
    struct line_model m = model (0.1, rates[k], 64);
    m.service_ms = 200;
    m.disk_bytes = (uint64_t)(32 * MIB);
    m.writes = 20;
    struct line_result r = line_run (&m);
    cr_assert_geq (r.latency_ms, 75, "%s: %.1f ms", name (&m), r.latency_ms);
    cr_assert_leq (r.latency_ms, 300, "%s: %.1f ms", name (&m), r.latency_ms);
    cr_assert (r.ready);
    m.max_downtime_ms = 70;
    cr_assert_not (line_run (&m).ready, "%s", name (&m));
  }
}

/* Lines at random; the message has the seed. */
Test (line, lines_at_random)
{
  unsigned x = 2463534242;

  for (unsigned seed = 1; seed <= 100; seed++) {
    double u[3];
    for (unsigned i = 0; i < 3; i++) {
      x ^= x << 13, x ^= x >> 17, x ^= x << 5;
      u[i] = x / 4294967296.0;
    }
    struct line_model m
        = model (0.1 * pow (3000, u[0]), MBIT * pow (10000, u[1]), threads[(unsigned)(u[2] * 3)]);
    double most = m.rtt_ms < 2 ? ENGINE_DEPTH : ENGINE_SHORT_SLOTS;
    m.seed = seed;
    m.writes = fmin (capacity (&m, 4096, most) / 4096 / 5, 5000);
    check (&m);
  }
}

/* Dirty neighbours with the clean blocks between them: never slower, nothing that is clean on a
 * thin line, and faster where the server has more work with a request than the line has with its
 * bytes.
 */
Test (line, neighbours)
{
  static const double densities[] = { 0.01, 0.1, 0.25, 0.5, 0.75 };
  double most = 1;

  for (unsigned i = 0; i < NR (rtts); i++)
    for (unsigned k = 0; k < NR (rates); k++)
      for (unsigned t = 0; t < NR (threads); t++)
        for (unsigned d = 0; d < NR (densities); d++) {
          struct line_model m = model (rtts[i], rates[k], threads[t]);
          unsigned n = rates[k] < 100 * MBIT ? 500 : 20000;
          struct line_pass alone = line_scattered (&m, densities[d], n, false);
          struct line_pass joined = line_scattered (&m, densities[d], n, true);
          cr_assert_leq (joined.seconds, alone.seconds * 1.05 + 3 * m.rtt_ms / 1000,
                         "%s, density %g: %.3f s instead of %.3f", name (&m), densities[d],
                         joined.seconds, alone.seconds);
          cr_assert_leq (joined.sent_bytes, 2 * n * 4096.0);
          if (rates[k] <= 10 * MBIT)
            cr_assert_leq (joined.sent_bytes, 1.02 * n * 4096.0, "%s, density %g: %.0f bytes",
                           name (&m), densities[d], joined.sent_bytes);
          if (alone.seconds / joined.seconds > most)
            most = alone.seconds / joined.seconds;
          if (getenv ("SHOW") != NULL)
            printf ("%s, density %g: %.3f s alone, %.3f joined, sent %.2f\n", name (&m),
                    densities[d], alone.seconds, joined.seconds, joined.sent_bytes / n / 4096);
        }
  cr_assert_geq (most, 3, "the best is %.2f times as fast", most);
}
