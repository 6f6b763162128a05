/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Several connections to one export, made at the same time.  A handshake takes three to five round
 * trips, so that four connections one after the other take over a second on a line of 100 ms.
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_NBD_AHEAD_H
#define NBDMIRROR_MIRROR_ENDPOINT_NBD_AHEAD_H

#include <stdatomic.h>

#include "mirror/endpoint/endpoint.h"

struct nbd_endpoint;
struct nbd_handle;

/* What became of one connection. */
struct nbd_attempt {
  struct nbd_handle *h; /* NULL: there is none */
  int errnum;           /* then why */
  char *error;          /* base/text.h */
};

/* All zero: nothing was made ahead. */
struct nbd_ahead {
  struct nbd_attempt attempts[CHANNEL_MAX_FDS]; /* the good ones first */
  unsigned nr;
  _Atomic unsigned taken;
};

/* Make NR connections more (at most CHANNEL_MAX_FDS), each with a thread of its own, and wait for
 * all: at most connect_timeout_ms.  Once for an endpoint, before its channels are opened. */
void nbd_ahead_connect (struct nbd_endpoint *nep, unsigned nr);

/* Take the next one.  False: there are no more, or there were none.  Any thread. */
bool nbd_ahead_take (struct nbd_ahead *a, struct nbd_attempt *attempt);

/* Close those that nobody has taken. */
void nbd_ahead_close (struct nbd_ahead *a);

#endif
