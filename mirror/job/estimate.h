/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the worker believes about the near future, from samples of its counters: bandwidth, dirty
 * rate, the pause that a hand-off would take now, and whether that fits ("ready").  A pause that
 * fits makes it ready when the second sample in a row says so, or the first one if nothing is left
 * and the guest has written nothing since the last look.  Whether it converges is converge.h's
 * question.  Plain values in, plain values out: no clock, no I/O.
 *
 * Bandwidth is what was acknowledged while there was work all the time.  A small or calm disk never
 * keeps the copiers busy for a whole sample: there it is bytes by the time in which anything was
 * being copied.  Few and small requests show less than the line could do, so they raise the
 * estimate, and lower it only if they moved much.
 *
 * Samples may come much sooner than the usual 100 ms when the job is about to be ready.  Rates are
 * of spans of at least SPAN_NS all the same, so that they do not become those of a moment.
 */

#ifndef NBDMIRROR_MIRROR_JOB_ESTIMATE_H
#define NBDMIRROR_MIRROR_JOB_ESTIMATE_H

#include <stdbool.h>
#include <stdint.h>

#define ESTIMATE_WINDOW 20 /* spans; of one sample of 100 ms each: the last 2 s */

/* One look at the counters. */
struct estimate_sample {
  uint64_t now_ns;
  uint64_t acked_bytes;   /* data and zeroes acknowledged by the destination, ever growing */
  uint64_t passed_bytes;  /* holes, done by their block status alone, ever growing */
  uint64_t dirtied_bytes; /* turned from clean to dirty by the guest, ever growing */
  uint64_t left_bytes;    /* dirty, or claimed and not yet acknowledged */
  uint64_t line_bytes;    /* of these: sent and not yet acknowledged */
  uint64_t quarantine_bytes;
  uint64_t busy_ns; /* time in which something was being copied, ever growing */
  uint64_t limit;   /* bytes a second that may be sent; 0: no limit */
  bool queue_full;  /* there was work all the time since the last sample */
};

struct estimate_span {
  uint64_t ns, bytes;
};

/* Measured costs of the final step. */
struct estimate_costs {
  uint64_t flush_ns; /* one destination flush */
  uint64_t rtt_ns;   /* one round trip */
  uint64_t write_ns; /* one write that waits behind no other (engine_write_ns()) */
  bool no_flush_yet; /* flush_ns says nothing, and the pause is not known (R9) */
};

struct estimate {
  struct estimate_sample last;
  bool have_last;
  struct estimate_span busy[ESTIMATE_WINDOW], guest[ESTIMATE_WINDOW], moved[ESTIMATE_WINDOW];
  unsigned nr_busy, nr_guest, nr_moved; /* ever added; ring index modulo the window */
  struct estimate_span part; /* bytes by busy time, from samples with idle time in them */
  unsigned fitting;          /* samples running that fit the allowed downtime */

  /* Results, valid after estimate_add(). */
  double bandwidth;  /* bytes/s; 0: not known yet */
  double dirty_rate; /* bytes/s newly dirtied */
  double move_rate;  /* bytes/s of the disk that are dealt with, holes included */
  bool pause_known;
  double fixed_ms; /* of the expected pause: what does not depend on how much is left */
  double trip_ms;  /* of that: what the last blocks take, however few they are */
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

/* When can the job be ready at the earliest, for all that is known?  In so many ms; 0: now, or that
 * cannot be told. */
double estimate_fits_in_ms (const struct estimate *e, double max_downtime_ms);

/* How long after the last sample is the next one due, if so many bytes are left now?  The usual
 * 100 ms; at once if the last one saw something left and now nothing is; soon if all that is
 * missing is a second one that fits as well, or still nothing is left; and when the first one may
 * fit.  MAY_BE_READY: a sample could make the job ready, which it is not yet.  Nanoseconds. */
uint64_t estimate_next_ns (const struct estimate *e, bool may_be_ready, uint64_t left_bytes,
                           double max_downtime_ms);

/* Is dirty_rate from a whole window of samples? */
bool estimate_have_rates (const struct estimate *e);

/* Seconds until ready if the guest dirties DIRTY_RATE, or a negative number if unknown or never. */
double estimate_eta_s (const struct estimate *e, double max_downtime_ms, double dirty_rate);

#endif
