/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the worker believes about the near future, from samples of its counters (blueprint 7): bandwidth, dirty rate,
 * the pause that a hand-off would take now, whether that fits ("ready"), and whether the passes
 * converge.  Plain values in, plain values out: no clock, no I/O.
 */

#ifndef NBDMIRROR_ESTIMATE_H
#define NBDMIRROR_ESTIMATE_H

#include <stdbool.h>
#include <stdint.h>

#define ESTIMATE_WINDOW 20 /* samples; at 100 ms each: the last 2 s */

/* One look at the counters. */
struct estimate_sample {
  uint64_t now_ns;
  uint64_t acked_bytes;   /* data and zeroes acknowledged by the destination, ever growing */
  uint64_t passed_bytes;  /* holes, done by their block status alone, ever growing */
  uint64_t dirtied_bytes; /* turned from clean to dirty by the guest, ever growing */
  uint64_t left_bytes;    /* dirty, or claimed and not yet acknowledged */
  uint64_t quarantine_bytes;
  bool queue_full;        /* there was work all the time since the last sample */
};

struct estimate_span {
  uint64_t ns, bytes;
};

/* Measured costs of the final step. */
struct estimate_costs {
  uint64_t flush_ns; /* one destination flush */
  uint64_t rtt_ns;   /* one round trip */
};

enum converging { CONVERGING_UNKNOWN, CONVERGING_YES, CONVERGING_NO };

struct estimate {
  struct estimate_sample last;
  bool have_last;
  struct estimate_span busy[ESTIMATE_WINDOW], guest[ESTIMATE_WINDOW], moved[ESTIMATE_WINDOW];
  unsigned nr_busy, nr_guest; /* ever added; ring index modulo the window */
  unsigned fitting;           /* samples running that fit the allowed downtime */

  /* Results, valid after estimate_add(). */
  double bandwidth;          /* bytes/s while the queue was full; 0: not known yet */
  double dirty_rate;         /* bytes/s newly dirtied */
  double move_rate;          /* bytes/s of the disk that are dealt with, holes included */
  bool pause_known;
  double expected_pause_ms;
  bool ready;
};

void estimate_init (struct estimate *e);

/* Take a sample in and bring the results up to date. MAX_DOWNTIME_MS is the allowed pause. */
void estimate_add (struct estimate *e, const struct estimate_sample *s,
                   const struct estimate_costs *costs, double max_downtime_ms);

/* A session begins: the next sample is compared with FIRST. */
void estimate_begin (struct estimate *e, struct estimate_sample first);

/* A session was lost: not ready until two new samples fit.  Bandwidth is kept. */
void estimate_lost (struct estimate *e);

/* Will pre-copy end at these rates?  The redirty ratio dirty_rate ÷ bandwidth must stay below 1. */
enum converging estimate_converging (const struct estimate *e);

/* Seconds until ready at these rates, or a negative number if unknown or never. */
double estimate_eta_s (const struct estimate *e, double max_downtime_ms);

/* Has a pass that began with BEFORE bytes left and ends with AFTER converged enough to go on
 * as it is?  (Rule of blueprint 7: it must have halved what was left.) */
bool estimate_pass_halved (uint64_t before, uint64_t after);

#endif
