/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proves that `nbdmirror receive` finds a port taken, or no place to serve at, exactly where nbdkit
 * does: of the addresses of a name some may be in use, and none may be otherwise wrong.
 */

#include "config.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "base/fd.h"
#include "cmd/cmd.h"
#include "cmd/receive/server.h"
#include "tests/unit/unit.h"

#define FREE "127.0.0.2"
#define TAKEN "127.0.0.3"
#define ELSEWHERE "192.0.2.1" /* for documentation: no host has it */

static struct sockaddr_in addresses[2];
static struct addrinfo list[2];

int __wrap_getaddrinfo (const char *name, const char *port, const struct addrinfo *hints,
                        struct addrinfo **all);
void __wrap_freeaddrinfo (struct addrinfo *all);

int
__wrap_getaddrinfo (const char *name, const char *port, const struct addrinfo *hints,
                    struct addrinfo **all)
{
  (void)name;
  (void)port;
  (void)hints;
  *all = &list[0];
  return 0;
}

void
__wrap_freeaddrinfo (struct addrinfo *all)
{
  (void)all;
}

static void
set_address (unsigned i, const char *text, in_port_t port)
{
  addresses[i] = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = port };
  inet_pton (AF_INET, text, &addresses[i].sin_addr);
  list[i] = (struct addrinfo){ .ai_family = AF_INET,
                               .ai_socktype = SOCK_STREAM,
                               .ai_addr = (struct sockaddr *)&addresses[i],
                               .ai_addrlen = sizeof addresses[i],
                               .ai_next = i == 0 ? &list[1] : NULL };
}

/* Somebody listens at TAKEN, on the port that is asked for. */
static int
looked_at (const char *first, const char *second)
{
  const struct receive_server s = { .port = "a port", .address = "a name" };
  struct sockaddr_in taken = { .sin_family = AF_INET };
  socklen_t len = sizeof taken;
  CLEANUP_FD int fd = socket (AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

  inet_pton (AF_INET, TAKEN, &taken.sin_addr);
  cr_assert (fd != -1 && bind (fd, (struct sockaddr *)&taken, len) == 0 && listen (fd, 1) == 0
             && getsockname (fd, (struct sockaddr *)&taken, &len) == 0);
  set_address (0, first, taken.sin_port);
  set_address (1, second, taken.sin_port);
  return receive_place_is_free (&s);
}

Test (receive_place, one_is_enough)
{
  cr_expect (looked_at (FREE, TAKEN) == EXIT_DONE);
  cr_expect (looked_at (TAKEN, FREE) == EXIT_DONE);
}

Test (receive_place, all_are_taken)
{
  cr_expect (looked_at (TAKEN, TAKEN) == EXIT_ERROR);
}

Test (receive_place, one_is_elsewhere)
{
  cr_expect (looked_at (FREE, ELSEWHERE) == EXIT_ERROR);
  cr_expect (looked_at (ELSEWHERE, FREE) == EXIT_ERROR);
  cr_expect (looked_at (TAKEN, ELSEWHERE) == EXIT_ERROR);
}
