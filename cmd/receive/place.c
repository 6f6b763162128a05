/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Is the port free at which `receive` is about to serve?  nbdkit would say so, too, but only after
 * the disk was made.  A Unix socket is looked at with its path (cmd/serve/paths.h).
 *
 * As nbdkit does it: each address that a name stands for is bound, and one of them is enough if the
 * others are in use.  Any other fault of one is the end.
 */

#include "config.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "cmd/cmd.h"
#include "cmd/receive/server.h"

/* 0, or an errno. */
static int
try_to_bind (const struct addrinfo *a)
{
  CLEANUP_FD int fd = socket (a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
  int on = 1;

  if (fd == -1 || setsockopt (fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == -1
      || (a->ai_family == AF_INET6
          && setsockopt (fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) == -1)
      || bind (fd, a->ai_addr, a->ai_addrlen) == -1)
    return errno;
  return 0;
}

int
receive_place_is_free (const struct receive_server *s)
{
  const struct addrinfo hints
      = { .ai_flags = AI_PASSIVE | AI_ADDRCONFIG, .ai_socktype = SOCK_STREAM };
  struct addrinfo *all = NULL;
  bool found = false;
  int err = 0;

  if (s->port == NULL)
    return EXIT_DONE;
  int r = getaddrinfo (s->address, s->port, &hints, &all);
  if (r != 0) {
    cmd_say ("--address %s: %s", s->address != NULL ? s->address : "(all)",
             r == EAI_SYSTEM ? strerror (errno) : gai_strerror (r));
    return EXIT_ERROR;
  }
  for (const struct addrinfo *a = all; a != NULL && (err == 0 || err == EADDRINUSE);
       a = a->ai_next) {
    err = try_to_bind (a);
    found = found || err == 0;
  }
  freeaddrinfo (all);
  if (err == 0 || (found && err == EADDRINUSE))
    return EXIT_DONE;
  cmd_say ("--port %s: %s", s->port, strerror (err));
  return EXIT_ERROR;
}
