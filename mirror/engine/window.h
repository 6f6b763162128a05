/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * How many requests a copier keeps in flight, where it could always have more.
 *
 * Requests beyond what the destination can use only wait, and their data leaves the processor's
 * cache: 1 GiB from the page cache through a unix socket takes a quarter more processor time with
 * 16 buffers of 256 KiB than with four, which the cache can hold.  But a destination far away, or
 * one with slow disks behind it, needs all 16.  The latency of the replies tells which it is, as in
 * TCP Vegas: what it has grown by, over the lowest latency seen lately, is time spent waiting in
 * some queue.  That queue shall hold a few requests and no more; one is enough if it takes the line
 * long.
 *
 * A line that is full shows no low latency, so the lowest one is measured anew every ten seconds:
 * for a moment a little less than the line holds is sent.  That moment is the same for all copiers,
 * which would see each other's queue otherwise.  What they measure is shared.
 *
 * Over a long line the number that is right depends on the length of the requests: scattered blocks
 * of 4 KiB need hundreds in flight where whole requests need a few.  So there the window is doubled
 * while no queue shows, and set to what the line holds once one does.  And there are two windows,
 * for whole requests and for scattered blocks.  Of a mixture, each request takes its part of its
 * own window.  Until there have been scattered blocks their window is as many bytes as the other
 * one, because the line is full in terms of bytes if it is thin.  Requests of a length between the
 * two say nothing about either window.
 *
 * There is no I/O and there are no locks.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_WINDOW_H
#define NBDMIRROR_MIRROR_ENGINE_WINDOW_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define WINDOW_MIN 4

/* The lowest latency that was seen, of this period and of the one before.  All copiers of a session
 * share it: one that joins a line which others fill would never see a low one.  All zeroes: none
 * was seen yet. */
struct window_lowest {
  _Atomic uint64_t period; /* counted from the clock's zero on */
  _Atomic uint64_t ns[2];  /* by the period modulo 2; 0: none */
};

struct window {
  struct window_lowest *lowest; /* borrowed */
  unsigned depth, short_max, max;
  bool doubling;     /* it has just been: what is in flight says little of what the line can do */
  bool judged;       /* DEPTH follows from replies */
  unsigned replies;  /* since depth was last looked at */
  uint64_t sum_ns;   /* of their latencies */
  double sum_flight; /* of the requests in flight when they were sent */
  double held;       /* by a long line without any queue, as last seen; 0: not known */
  uint64_t period;   /* of the last reply */
  uint64_t probe_end_ns; /* until then less is sent; 0: it is not */
  unsigned probe_depth;
};

/* At most MAX requests, and at most SHORT_MAX where replies take less than 2 ms. */
void window_init (struct window *w, struct window_lowest *lowest, unsigned short_max, unsigned max);
/* No request was sent yet, and a round trip takes RTT_NS (0: unknown).  Over a long line the window
 * begins wider, since each doubling takes a round trip. */
void window_expect (struct window *w, uint64_t rtt_ns);
/* A request was answered at NOW_NS, LATENCY_NS after it was sent.  With it, IN_FLIGHT were in
 * flight when it was sent. */
void window_reply (struct window *w, uint64_t latency_ns, double in_flight, uint64_t now_ns);
/* So many may be in flight now. */
unsigned window_depth (const struct window *w);

/* Requests of one copier. */
struct window_load {
  unsigned nr_whole, nr_scattered;
  uint64_t whole_bytes;
};

/* One copier's windows.  A request of at most SCATTERED_BYTES is a scattered one. */
struct windows {
  struct window whole, scattered;
  uint32_t whole_bytes, scattered_bytes; /* the lengths; the latter 0: all count as whole ones */
};

/* Begin with windows of at most MAX_WHOLE and MAX_SCATTERED requests.  LOWEST: of whole requests,
 * and of scattered ones. */
void windows_init (struct windows *ws, struct window_lowest lowest[2], uint32_t whole_bytes,
                   uint32_t scattered_bytes, unsigned short_max, unsigned max_whole,
                   unsigned max_scattered);

/* A request of BYTES begins, or ends. */
void windows_add (const struct windows *ws, struct window_load *l, uint64_t bytes);
void windows_remove (const struct windows *ws, struct window_load *l, uint64_t bytes);

/* Which part of the windows does L take?  From 1 on they are full. */
double windows_filled (const struct windows *ws, const struct window_load *l);

/* L in requests like one of BYTES. */
double windows_in_flight (const struct windows *ws, const struct window_load *l, uint64_t bytes);

/* A request of BYTES was answered.  IN_FLIGHT: as windows_in_flight() said when it was sent, of a
 * load with it. */
void windows_reply (struct windows *ws, uint64_t bytes, uint64_t latency_ns, double in_flight,
                    uint64_t now_ns);

/* Is the number of requests of BYTES that may be in flight not what it was or will be? */
bool windows_change (const struct windows *ws, uint64_t bytes);

#endif
