/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Ending a handshake from outside: one that takes too long, or that nobody wants any more.
 *
 * libnbd (1.14 to 1.22) does the whole handshake of TLS within one call, in which it waits for the
 * server for up to 40 s.  Only the end of the connection makes it return earlier.  So a thread
 * shuts the socket down when the time is over.  It knows the socket by a descriptor of its own,
 * because libnbd may close one and try the next address.
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_NBD_HANG_UP_H
#define NBDMIRROR_MIRROR_ENDPOINT_NBD_HANG_UP_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct nbd_hang_up {
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t changed;

  /* Under lock. */
  uint64_t limit_ns; /* of clock_ns() */
  int fd;            /* a duplicate, or -1 */
  uint64_t socket;   /* its inode */
  bool over, done;   /* the connection stands, or has failed; the time is over */
};

/* Start the thread, which acts at LIMIT_NS.  0, or an errno. */
int nbd_hang_up_start (struct nbd_hang_up *u, uint64_t limit_ns);

/* It is to act at LIMIT_NS instead; 0: now.  Any thread, before nbd_hang_up_end(). */
void nbd_hang_up_limit (struct nbd_hang_up *u, uint64_t limit_ns);

/* The connection uses FD now.  Called by the connecting thread before each call that may wait. */
void nbd_hang_up_watch (struct nbd_hang_up *u, int fd);

/* End the thread.  True if the time was over, and the connection is shut down if there was one. */
bool nbd_hang_up_end (struct nbd_hang_up *u);

#endif
