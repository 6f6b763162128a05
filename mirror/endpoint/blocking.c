/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Blocking requests on a channel.  See blocking.h.
 */

#include "config.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>

#include "mirror/endpoint/blocking.h"

struct wait {
  unsigned outstanding;
  int error;
  struct endpoint_extent first; /* of a status */
};

static void
on_done (void *opaque, int error)
{
  struct wait *w = opaque;
  w->outstanding = 0;
  w->error = error;
}

static void
on_status (void *opaque, int error, const struct endpoint_extent *extents, unsigned nr)
{
  struct wait *w = opaque;

  if (nr > 0)
    w->first = extents[0];
  on_done (w, error);
}

int
sync_drain (struct channel *ch, const unsigned *outstanding)
{
  while (*outstanding > 0) {
    struct pollfd fds[CHANNEL_MAX_FDS];
    int timeout = 1000;
    unsigned n = channel_pollfds (ch, fds, CHANNEL_MAX_FDS, &timeout);
    if (poll (fds, n, timeout) == -1 && errno != EINTR)
      return errno;
    if (channel_dispatch (ch, fds, n) == -1 && *outstanding > 0)
      return ESHUTDOWN;
  }
  return 0;
}

int
sync_room (struct channel *ch, const unsigned *outstanding)
{
  return channel_room (ch) == 0 ? sync_drain (ch, outstanding) : 0;
}

/* Until the request that was started is done.  0, or a positive errno. */
static int
wait_for (struct channel *ch, struct wait *w)
{
  int err = sync_drain (ch, &w->outstanding);

  return err ? err : w->error;
}

int
sync_read (struct channel *ch, void *buf, uint32_t len, uint64_t offset)
{
  struct wait w = { .outstanding = 1 };

  return channel_read (ch, buf, len, offset, on_done, &w) == -1 ? errno : wait_for (ch, &w);
}

int
sync_status (struct channel *ch, uint64_t len, uint64_t offset, struct endpoint_extent *first)
{
  struct wait w = { .outstanding = 1 };
  int err = channel_status (ch, len, offset, on_status, &w) == -1 ? errno : wait_for (ch, &w);

  *first = w.first;
  return err;
}
