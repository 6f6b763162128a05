/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Dirty blocks that lie near each other: are they sent as one request, with the clean blocks
 * between them?
 *
 * A later pass has scattered blocks.  A request for one costs both sides some work that does not
 * depend on its length, and over a long line a place among those that can be in flight.  The clean
 * blocks cost bandwidth.  So both are measured: what arrives in a second in long requests, and what
 * arrives in short ones.  As long as there is always more to send, the time of one short request of
 * L bytes is L / SHORT_RATE, and that of G bytes more in a request that is sent anyway is
 * G / LONG_RATE.  On a thin line both rates are the line's, and clean blocks never pay.
 *
 * This is a pure function of what was measured and of the time: no I/O, no locks.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_NEIGHBOURS_H
#define NBDMIRROR_MIRROR_ENGINE_NEIGHBOURS_H

#include <stdint.h>

#include "mirror/engine/latency.h"

struct neighbours {
  double long_rate;      /* bytes a second, the mean; 0: not known */
  double short_rate;     /* the fastest: a window that is still growing is slower */
  double short_bytes;    /* the mean length of the short requests */
  double short_wanted;   /* so many more of them, until their rate is known */
  uint64_t short_ns;     /* when the last of them was measured */
  uint64_t off_until_ns; /* 0: not off */
};

/* A write was answered.  All zeroes in N is a line of which nothing is known. */
void neighbours_reply (struct neighbours *n, const struct latency_reply *r, uint64_t now_ns);

/* How many clean bytes may lie between two dirty blocks that are sent as one request?  0: none. */
uint64_t neighbours_gap (const struct neighbours *n, uint64_t now_ns);

/* A request with clean blocks in it could not be read.  For some seconds there are no more, so that
 * what is wrong with the dirty ones is found without them. */
void neighbours_unread (struct neighbours *n, uint64_t now_ns);

#endif
