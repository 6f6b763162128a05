/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A model of a line with a server behind it, under a virtual clock.  One copier sends requests over
 * it, driven by the real window (mirror/engine/window.c), the real latency
 * (mirror/engine/latency.c), the real rule for neighbours (mirror/engine/neighbours.c) and the real
 * estimates (mirror/job/estimate.c).
 *
 * Requests go onto the line one after the other, at its rate, and wait for each other in a buffer
 * without a limit: whoever fills it sees only that replies come later.  While the line stalls, as
 * TCP does after a loss, nothing goes onto it.  The server has some threads, each of which takes
 * its time for one request.  Replies cost nothing but half a round trip.
 *
 * The job copies the whole disk in requests of 256 KiB, and then what the guest has written, block
 * by block.  Left out: reads, flush turns, and several connections.
 */

#ifndef NBDMIRROR_TESTS_SIM_LINE_H
#define NBDMIRROR_TESTS_SIM_LINE_H

#include <stdbool.h>
#include <stdint.h>

struct line_model {
  double rtt_ms, rate;            /* RATE: bytes a second */
  double stall_every_s, stall_ms; /* 0: never */
  unsigned threads;               /* of the server */
  double service_ms;              /* for a request, half more or less at random */
  double writes;                  /* of the guest, 4 KiB each, a second */
  double max_downtime_ms;
  uint64_t disk_bytes;
  double after_s; /* the guest writes for so long after the first pass */
  unsigned seed;
};

struct line_result {
  double pass_rate;             /* bytes a second, in the second half of the first pass */
  double pass_latency_ms;       /* the mean latency there */
  double behind_bytes;          /* that the guest has written and nobody had sent, at the end */
  double latency_ms;            /* as latency.c tells at the end; 0: it does not know */
  double pass_told_ms;          /* the same at the end of the first pass */
  double expected_ms, pause_ms; /* the pause at the end: as foreseen, and as it was */
  bool ready;                   /* at the end */
};

/* The latency of one request of BYTES that is alone. */
double line_alone_ms (const struct line_model *m, double bytes);

struct line_result line_run (const struct line_model *m);

/* A pass over scattered blocks, after one over the whole disk. */
struct line_pass {
  double seconds, sent_bytes;
};

/* A pass over a disk on which the share DENSITY of the blocks is dirty, NR_DIRTY of them, at
 * random.  JOIN: by the real rule (mirror/engine/neighbours.c); else only what is adjacent goes as
 * one request. */
struct line_pass line_scattered (const struct line_model *m, double density, unsigned nr_dirty,
                                 bool join);

/* How much of the line a pass over NR_DIRTY scattered blocks makes use of, from the moment at which
 * all of the first pass is in flight until all of the second one is answered: the time that the
 * bytes take at RATE, and one round trip, as a part of the time that they took. */
double line_change (const struct line_model *m, unsigned nr_dirty);

#endif
