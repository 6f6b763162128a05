/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the kinds of endpoint share.  A kind is one struct endpoint_ops; endpoint.c does for all of
 * them what is the same (checks, the pool of requests, the list of those that are done).
 *
 * A request is a struct op.  It is taken from its channel's pool and put into the in-flight list,
 * which keeps the order of submission.  op_done() moves it to the done list; that may happen
 * anywhere in the channel's thread, also under a library's lock.  channel_dispatch() then calls
 * back and returns it to the pool.  No request needs memory to be allocated.
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_INTERNAL_H
#define NBDMIRROR_MIRROR_ENDPOINT_INTERNAL_H

#include <stddef.h>

#include "base/clock.h"
#include "compress/compressor.h"
#include "mirror/endpoint/endpoint.h"

#define ENDPOINT_MAX_REQUEST (32u << 20)
/* The longest status question: 1.32.5 of nbdkit aborts near 4 GiB, and 2 GiB is plenty. */
#define ENDPOINT_MAX_STATUS ((UINT64_C (2) << 30) - 65536)
#define ENDPOINT_MAX_EXTENTS 1024u
#define ENDPOINT_FLUSH_OPS 2u /* places kept for flushes, beyond channel_room() */

enum op_kind { OP_READ, OP_WRITE, OP_ZERO, OP_STATUS, OP_FLUSH };

struct op {
  struct op *next, *prev; /* in flight: both; free or done: next only */
  struct channel *ch;
  void *private; /* of the kind: the NBD connection */
  enum op_kind kind;
  int error;
  uint64_t offset;
  uint64_t len;
  void *buf;       /* never written to by OP_WRITE */
  bool allocate;   /* OP_ZERO: without making a hole */
  bool first_only; /* OP_STATUS: the first extent will do */
  int64_t started; /* endpoint_now_ms() */
  channel_done done;
  channel_status_done status_done;
  void *opaque;
  struct endpoint_extent
      *extents; /* room for ENDPOINT_MAX_EXTENTS; kept with the op once it was needed */
  unsigned nr_extents;
  struct squeeze squeeze; /* NBD: an OP_WRITE that may be compressed */
  unsigned nr_contexts;   /* NBD: how many meta contexts have answered */
};

struct endpoint_ops {
  void (*close) (struct endpoint *ep);
  struct channel *(*channel_open) (struct endpoint *ep, int *errnum, char **error);
  /* As channel_widen(); NULL: a channel is never narrow. */
  int (*widen) (struct channel *ch, int *errnum, char **error);
  /* Stop all I/O: no memory of a request is in use afterwards.  Requests are still in flight. */
  void (*stop) (struct channel *ch);
  void (*channel_free) (struct channel *ch);
  /* Start OP, which is checked and in flight; op_done() at once is fine.  -1 with errno if not. */
  int (*start) (struct channel *ch, struct op *op);
  unsigned (*pollfds) (struct channel *ch, struct pollfd *fds, unsigned max, int64_t now,
                       int *timeout_ms);
  /* Handle events: op_done() what is done, channel_die() if it is broken. */
  void (*dispatch) (struct channel *ch, const struct pollfd *fds, unsigned nr, int64_t now);
};

/* The first member of each kind's own struct. */
struct endpoint {
  const struct endpoint_ops *ops;
  char *name;
  struct endpoint_options opts; /* with the defaults filled in */
  struct endpoint_info info;
  _Atomic bool full; /* connections were not admitted */
};

struct op_list {
  struct op *first, *last;
};

struct channel {
  struct endpoint *ep;
  char *error;     /* dead, and why */
  bool stopped;    /* dead, and ops->stop() was called */
  bool was_alive;  /* until channel_close() */
  struct op *pool; /* the memory */
  unsigned nr_ops;
  unsigned room;
  unsigned nr_connections; /* NBD; else 0 */
  bool in_turn;            /* see channel_in_turn() */
  uint64_t saved;          /* see channel_take_saved() */
  struct op *free;
  struct op_list in_flight; /* in the order of submission */
  struct op_list done;
};

/* Give the channel its pool of ROOM requests.  -1 if out of memory. */
int channel_init (struct channel *ch, struct endpoint *ep, unsigned room);
/* Free what channel_init() made. */
void channel_uninit (struct channel *ch);
/* Note that the channel is dead; the first reason stays.  channel_dispatch() does the rest. */
void channel_die (struct channel *ch, const char *fmt, ...) __attribute__ ((format (printf, 2, 3)));
void op_done (struct op *op, int error);
/* Append an extent to OP's, merging it with the last one if that is of the same kind.  False if
 * there is no room. */
bool op_add_extent (struct op *op, struct endpoint_extent extent);

/* Set *ERRNUM, and *ERROR to a text of base/text.h (both may be NULL). */
void endpoint_fail (int *errnum, char **error, int err, const char *fmt, ...)
    __attribute__ ((format (printf, 4, 5)));

/* Milliseconds of the clock that never goes back, up to 4 ms behind.  This runs for every request,
 * and the exact clock would cost more. */
static inline int64_t
endpoint_now_ms (void)
{
  return (int64_t)(clock_coarse_ns () / NS_PER_MS);
}

/* Make *TIMEOUT_MS, which is as for poll(), no longer than MS. */
static inline void
lower_timeout (int *timeout_ms, int64_t ms)
{
  if (ms < 0)
    ms = 0;
  if (*timeout_ms < 0 || ms < *timeout_ms)
    *timeout_ms = (int)ms;
}

#endif
