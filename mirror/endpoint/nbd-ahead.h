/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The connections to one export beside its first one, made at the same time and in the background.
 * A handshake takes four to five round trips, so four connections one after the other take two
 * seconds on a line of 100 ms.
 *
 *   nbd_ahead_begin()    the server has answered the first connection: the others connect, and wait
 *                        before they choose an export
 *   nbd_ahead_name()     the first connection knows the export's name, and the round trip is long:
 *                        the others ask about its meta contexts, and wait before they open it
 *   nbd_ahead_decide()   the first connection has opened the export, and knows whether there may be
 *                        others: they open it as well, or end
 *   nbd_ahead_take()     waits for them
 *
 * So a server that takes several connections has all of them one round trip after it has the first
 * one, or two on a short line.  One that does not sees connections that leave before they have
 * opened anything.
 *
 * The lock comes before those of the hang-ups.  Each connection has connect_timeout_ms from the
 * decision on.
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_NBD_AHEAD_H
#define NBDMIRROR_MIRROR_ENDPOINT_NBD_AHEAD_H

#include <pthread.h>

#include "mirror/endpoint/endpoint.h"
#include "mirror/endpoint/nbd-hang-up.h"

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
  unsigned number;
  struct nbd_attempt attempt;
  pthread_t thread;
  bool started, joined;
  struct nbd_hang_up hang_up;

  /* Under the lock. */
  bool can_hang_up; /* hang_up may be used */
  bool waits;       /* for the decision */
};

struct nbd_ahead {
  struct nbd_connecting all[CHANNEL_MAX_FDS];
  struct nbd_attempt made[CHANNEL_MAX_FDS]; /* when all have ended; the good ones first */
  unsigned nr, nr_made, taken;

  pthread_mutex_t lock;
  pthread_cond_t changed;
  /* Under lock: */
  bool named;
  bool decided;
  bool over;       /* nobody wants them any more */
  unsigned wanted; /* so many of all[], from the first one on */
};

void nbd_ahead_init (struct nbd_ahead *a);

/* Begin to make NR connections to NEP (at most CHANNEL_MAX_FDS), each with a thread of its own.
 * Nothing happens if they are being made already. */
void nbd_ahead_begin (struct nbd_ahead *a, struct nbd_endpoint *nep, unsigned nr);

/* NEP is described: NR connections are wanted, which are begun if none are. */
void nbd_ahead_decide (struct nbd_ahead *a, struct nbd_endpoint *nep, unsigned nr);

/* The name of the export that the others will open is settled.  An answer of the server takes so
 * long that none can have come when a question has just been sent. */
void nbd_ahead_name (struct nbd_ahead *a);

/* For nbd_connect(), in C's own thread: wait for the name, or the decision.  Is only the name
 * known? */
bool nbd_ahead_is_named (struct nbd_connecting *c);
/* The same: wait for the decision.  Is C to go on? */
bool nbd_ahead_is_wanted (struct nbd_connecting *c);

/* Are there connections that nobody has taken, made or being made? */
bool nbd_ahead_has (const struct nbd_ahead *a);

/* Take the next one; the first time wait for all: at most connect_timeout_ms.  False: there are no
 * more.  One thread at a time. */
bool nbd_ahead_take (struct nbd_ahead *a, struct nbd_attempt *attempt);

/* End those that are being made, and close those that nobody has taken.  This waits for nothing but
 * the search for the address of a host. */
void nbd_ahead_destroy (struct nbd_ahead *a);

#endif
