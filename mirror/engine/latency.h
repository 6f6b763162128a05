/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * How long the destination takes for one write that waits behind no other: the round trip, and
 * what the server does before it answers.  A hand-over's last blocks take that long, however few
 * they are.
 *
 * What is measured is more: a request waits behind the others that are in flight.  On a thin line
 * that is most of it, and it says nothing about the last blocks, whose bytes are counted anyway. So
 * from each measured time the part is taken off that the bytes in flight need at the fastest rate
 * that was seen.  The lowest of what remains counts, but only from replies of which four fifths
 * remain.  The others cannot be told from those of a line that was full, by its own rate.  They say
 * no more than that the latency is not above what they took.  None of this can be done when the
 * reply comes: the first request of a job is alone, and its own bytes by its own time are the
 * fastest rate so far.  Therefore the shortest time is kept for each order of magnitude of bytes in
 * flight, and the rest is done when somebody asks.
 *
 * Both figures are forgotten after two periods, for lines change.  The fastest rate is forgotten
 * only while there is always something to send: a calm guest does not show what a line can do.
 *
 * This is a pure function of what was measured and of the time: no I/O, no locks.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_LATENCY_H
#define NBDMIRROR_MIRROR_ENGINE_LATENCY_H

#include <stdbool.h>
#include <stdint.h>

#define LATENCY_CLASSES 40 /* powers of two */

/* A write that was answered. */
struct latency_reply {
  uint64_t took_ns;   /* 0: there was none, and nothing below is set */
  uint64_t bytes;     /* of it */
  uint64_t queued;    /* bytes that were in flight when it was sent, its own included */
  uint64_t delivered; /* bytes that were answered since then, its own included */
  bool pressed;       /* there was more to send than could be in flight */
  bool doubling;      /* as many could not be in flight all the time (window.h) */
};

struct latency_sample {
  uint64_t took_ns, queued; /* took_ns 0: none */
};

struct latency {
  struct latency_sample low[2][LATENCY_CLASSES]; /* of this period, and of the one before */
  double fastest[2];                             /* bytes a second */
  uint64_t low_end_ns, fastest_end_ns;           /* the ends of the periods */
};

/* All zeroes is a latency of which nothing is known. */
void latency_add (struct latency *l, const struct latency_reply *r, uint64_t now_ns);

/* Nanoseconds; 0: not known. */
uint64_t latency_ns (const struct latency *l);

/* A request has taken TOOK_NS, or is taking it.  QUEUED bytes were on their way when it was sent.
 * How much of that time remains without the one that these took, at the fastest rate? */
uint64_t latency_behind_ns (const struct latency *l, uint64_t took_ns, uint64_t queued);

#endif
