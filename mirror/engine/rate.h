/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The bandwidth limit: a token bucket.  It is a pure function of the times it is given, so that it
 * can be tested without a clock.  Callers serialise access.
 *
 * A request may start when the bucket is not in debt, and then takes its whole size, even below
 * zero.  So in any span of T seconds at most T × rate + burst + one request is let through.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_RATE_H
#define NBDMIRROR_MIRROR_ENGINE_RATE_H

#include <stdint.h>

struct rate_limit {
  uint64_t rate;    /* bytes a second; 0: no limit */
  double tokens;    /* bytes; negative: debt */
  uint64_t last_ns; /* when tokens was brought up to date */
};

/* Start with an empty bucket: a limit holds from the first byte on. */
void rate_init (struct rate_limit *r, uint64_t rate, uint64_t now_ns);

/* Change the rate from NOW on.  A debt stays, in bytes. */
void rate_set (struct rate_limit *r, uint64_t rate, uint64_t now_ns);

/* Nanoseconds until a request may start; 0: now. */
uint64_t rate_wait (struct rate_limit *r, uint64_t now_ns);

/* Pay for BYTES.  Call only after rate_wait() said 0. */
void rate_take (struct rate_limit *r, uint64_t bytes);

/* Give back what was paid for and not sent (it turned out to be zeroes). */
void rate_give (struct rate_limit *r, uint64_t bytes);

#endif
