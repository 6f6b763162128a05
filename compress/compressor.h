/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Threads that compress, and queues of writes that wait for them.
 *
 *   a thread that writes           a thread of the compressor
 *   squeeze_begin() ────────────>  compresses the write (a struct squeeze)
 *   squeeze_next()  <────────────  puts it into the writer's queue, whose descriptor wakes it
 *   sends it
 *   squeeze_end()
 *
 * One compressor serves all connections of an endpoint.  Each thread that writes has its own queue.
 * There is one lock, the compressor's; nothing is called under it.
 */

#ifndef NBDMIRROR_COMPRESS_COMPRESSOR_H
#define NBDMIRROR_COMPRESS_COMPRESSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct compressor;
struct squeeze_queue;

/* One write.  It lives in the writer's memory; all but `data`, `length` and `opaque` is set by the
 * functions below. */
struct squeeze {
  const void *data; /* not changed until the write has ended */
  size_t length;
  void *opaque; /* the writer's */

  void *pack; /* what to send instead, or NULL; owned */
  size_t pack_length;
  struct squeeze_queue *queue;
  struct squeeze *next;
  int level;
  uint32_t tag;
};

/* Starts NR_THREADS threads (0: one a core, at most 4).  MAX_LEVEL is 1 to LEVEL_MAX (level.h).
 * Packs are made multiples of ALIGN bytes.  NULL with errno. */
struct compressor *compressor_new (int max_level, uint32_t align, unsigned nr_threads);
/* All queues are freed before.  NULL is allowed. */
void compressor_free (struct compressor *c);

/* NULL with errno. */
struct squeeze_queue *squeeze_queue_new (struct compressor *c);
/* What waits in it is dropped, and what is being compressed is waited for: no data are in use
 * afterwards.  Packs are still the writer's to drop.  NULL is allowed. */
void squeeze_queue_free (struct squeeze_queue *q);
/* Poll it for POLLIN. */
int squeeze_queue_fd (const struct squeeze_queue *q);

/* A write begins.  True: it comes back through squeeze_next().  False: send it as it is, now. */
bool squeeze_begin (struct squeeze_queue *q, struct squeeze *s);
/* The next write that was compressed (or turned out not to be worth it), or NULL. */
struct squeeze *squeeze_next (struct squeeze_queue *q);
/* The write has ended; OK if the destination has got it.  Frees its pack. */
void squeeze_end (struct squeeze_queue *q, struct squeeze *s, bool ok);
/* Free the pack of a write that squeeze_end() will not be called for. */
void squeeze_drop (struct squeeze *s);

#endif
