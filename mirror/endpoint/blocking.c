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
  bool done;
  int error;
};

static void
on_done (void *opaque, int error)
{
  struct wait *w = opaque;
  w->done = true;
  w->error = error;
}

int
sync_read (struct channel *ch, void *buf, uint32_t len, uint64_t offset)
{
  struct wait w = { .done = false };

  if (channel_read (ch, buf, len, offset, on_done, &w) == -1)
    return errno;
  while (!w.done) {
    struct pollfd fds[CHANNEL_MAX_FDS];
    int timeout = 1000;
    unsigned n = channel_pollfds (ch, fds, CHANNEL_MAX_FDS, &timeout);
    if (poll (fds, n, timeout) == -1 && errno != EINTR)
      return errno;
    if (channel_dispatch (ch, fds, n) == -1 && !w.done)
      return ESHUTDOWN;
  }
  return w.error;
}
