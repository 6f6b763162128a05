/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Who is at the other end of a connection, so that another one is known to reach the same server.
 * A name may have several addresses, with a server at each; and another server may have taken the
 * path of a Unix socket since.
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_NBD_PEER_H
#define NBDMIRROR_MIRROR_ENDPOINT_NBD_PEER_H

#include <stdbool.h>
#include <sys/socket.h>
#include <sys/types.h>

struct nbd_peer {
  struct sockaddr_storage address; /* all zero: unknown, or a Unix socket */
  pid_t pid;                       /* of a Unix socket: who listens there; 0: unknown */
};

/* FD is a connected socket. */
void nbd_peer_of (int fd, struct nbd_peer *peer);
/* False: they are two servers, or one server at two addresses. */
bool nbd_peer_equal (const struct nbd_peer *a, const struct nbd_peer *b);

#endif
