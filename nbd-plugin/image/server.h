/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * One qemu-nbd that serves an image, and the connections to it.
 *
 * The connections are made before qemu-nbd begins, and wait in the queue of the listening socket
 * that it gets.  Then the socket's name is removed.  So nobody else can connect, and all
 * connections lead to this one process.  It ends by itself when they are closed, unless that is
 * in the middle of the handshakes; so where nbdkit is killed, a guard ends it (base/child-guard.h).
 *
 * Each connection has one request under way at most, made by the thread that has taken it.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_IMAGE_SERVER_H
#define NBDMIRROR_NBD_PLUGIN_IMAGE_SERVER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include <libnbd.h>

#include "base/child-guard.h"

/* As many requests as nbdkit makes for one client by default. */
#define SERVER_CONNECTIONS 16

/* How qemu-nbd calls the block status that tells layers apart. */
#define SERVER_DEPTH_CONTEXT "qemu:allocation-depth"

struct image_options {
  const char *path;   /* absolute */
  const char *format; /* as for qemu-nbd */
  bool read_only;
  bool layers; /* it is to tell the image's layers apart */
};

/* What the server tells of the image. */
struct image_facts {
  int64_t size;
  bool read_only, flush, trim, zero, fast_zero, fua, cache, extents, layers, rotational;
  uint32_t minimum, preferred, maximum; /* bytes of a request; 0: not told */
};

struct image_server {
  pid_t pid;      /* 0: there is none */
  int end_status; /* as from waitpid(), when it has ended */
  struct child_guard guard;
  struct nbd_handle *connection[SERVER_CONNECTIONS];
  unsigned nr_connections;
  struct image_facts facts;
};

/* Start one, until END on base/clock.h's clock in ms.  0; or -1 with *ERROR (base/text.h) and
 * nothing left of it. */
int server_start (struct image_server *s, const struct image_options *o, uint64_t end,
                  char **error);

/* Kill it.  Requests under way fail soon after. */
void server_kill (const struct image_server *s);

/* It was killed, or has died, and no connection is in use: wait for its end, after which nothing
 * that it was asked to do can reach the image any more. */
void server_bury (struct image_server *s);

/* Close the connections, and wait until it has written what it has in memory and has ended.  No
 * connection is in use.  False if it has not ended after TIMEOUT_MS. */
bool server_leave (struct image_server *s, int timeout_ms);

/* Has the connection failed, rather than the request?  ERR is the request's error. */
bool server_is_lost (struct nbd_handle *connection, int err);

#endif
