/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * How many requests a copier keeps in flight, where it could always have more.
 *
 * Requests beyond what the destination can use only wait, and their data leaves the processor's
 * cache: 1 GiB from the page cache through a unix socket takes a quarter more processor time with
 * 16 buffers of 256 KiB than with four, which the cache can hold.  But a destination far away, or
 * one with slow disks behind it, needs all 16.  The latency of the replies tells which it is, as in
 * TCP Vegas: what it has grown by, over the lowest latency seen lately, is time spent waiting in
 * some queue.  That queue shall hold a few requests and no more.
 *
 * Over a long line the number that is right depends on the length of the requests: scattered blocks
 * of 4 KiB need hundreds in flight where whole requests need a few.  So there the window is doubled
 * while no queue shows, and set to what the line holds once one does.
 *
 * This is a pure function of latencies and the time: there is no I/O and there are no locks.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_WINDOW_H
#define NBDMIRROR_MIRROR_ENGINE_WINDOW_H

#include <stdbool.h>
#include <stdint.h>

#define WINDOW_MIN 4

struct window {
  unsigned depth, short_max, max;
  bool doubling;       /* it has just been: what is in flight says little of what the line can do */
  unsigned replies;    /* since depth was last looked at */
  uint64_t sum_ns;     /* of their latencies */
  uint64_t sum_flight; /* of the requests in flight when they came */
  uint64_t lowest_ns[2]; /* latency, of this period and of the one before; 0: none seen */
  uint64_t period_end_ns;
};

/* At most MAX requests, and at most SHORT_MAX where replies take less than 2 ms. */
void window_init (struct window *w, unsigned short_max, unsigned max);
/* No request was sent yet, and a round trip takes RTT_NS (0: unknown).  Over a long line the window
 * begins wider, since each doubling takes a round trip. */
void window_expect (struct window *w, uint64_t rtt_ns);
/* A request was answered at NOW_NS, LATENCY_NS after it was sent; IN_FLIGHT were in flight, with
 * it. */
void window_reply (struct window *w, uint64_t latency_ns, unsigned in_flight, uint64_t now_ns);

#endif
