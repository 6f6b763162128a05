/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See nbd-peer.h.
 */

#include "config.h"

#include <string.h>

#include "mirror/endpoint/nbd-peer.h"

void
nbd_peer_of (int fd, struct nbd_peer *peer)
{
  socklen_t len = sizeof peer->address;
  struct ucred who;

  memset (peer, 0, sizeof *peer);
  if (getpeername (fd, (struct sockaddr *)&peer->address, &len) == -1)
    memset (&peer->address, 0, sizeof peer->address);
  if (peer->address.ss_family != AF_UNIX)
    return;
  /* The path says nothing: what is renamed keeps its old one. */
  memset (&peer->address, 0, sizeof peer->address);
  len = sizeof who;
  if (getsockopt (fd, SOL_SOCKET, SO_PEERCRED, &who, &len) == 0)
    peer->pid = who.pid;
}

bool
nbd_peer_equal (const struct nbd_peer *a, const struct nbd_peer *b)
{
  return a->pid == b->pid && memcmp (&a->address, &b->address, sizeof a->address) == 0;
}
