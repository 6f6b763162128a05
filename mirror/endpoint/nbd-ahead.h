/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The connections to one export beside its first one, made at the same time and in the background.
 * A handshake takes three to five round trips, so four connections one after the other take over a
 * second on a line of 100 ms.  Meanwhile the first connection is of use already.
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_NBD_AHEAD_H
#define NBDMIRROR_MIRROR_ENDPOINT_NBD_AHEAD_H

#include <pthread.h>

#include "mirror/endpoint/endpoint.h"

struct nbd_endpoint;
struct nbd_handle;

/* What became of one connection. */
struct nbd_attempt {
  struct nbd_handle *h; /* NULL: there is none */
  int errnum;           /* then why */
  char *error;          /* base/text.h */
};

struct nbd_connecting {
  struct nbd_endpoint *nep;
  struct nbd_attempt attempt;
  pthread_t thread;
  bool started;
};

/* All zero: nothing is made ahead. */
struct nbd_ahead {
  struct nbd_connecting all[CHANNEL_MAX_FDS];
  struct nbd_attempt made[CHANNEL_MAX_FDS]; /* when all have ended; the good ones first */
  unsigned nr, nr_made, taken;
};

/* Begin to make NR connections more (at most CHANNEL_MAX_FDS), each with a thread of its own.  Once
 * for an endpoint that is described, before its channels are opened. */
void nbd_ahead_begin (struct nbd_endpoint *nep, unsigned nr);

/* Are there connections that nobody has taken, made or being made? */
bool nbd_ahead_has (const struct nbd_ahead *a);

/* Take the next one; the first time wait for all: at most connect_timeout_ms.  False: there are no
 * more.  One thread at a time. */
bool nbd_ahead_take (struct nbd_ahead *a, struct nbd_attempt *attempt);

/* Close those that nobody has taken. */
void nbd_ahead_close (struct nbd_ahead *a);

#endif
