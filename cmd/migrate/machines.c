/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See machines.h.
 */

#include "config.h"

#include <poll.h>

#include "base/clock.h"
#include "cmd/migrate/machines.h"

/* A process that ends closes its connections and its listening socket one by one. */
#define DYING_MS 1000

static int
fd_of (const struct machine *v)
{
  return v->qmp != NULL ? control_client_fd (v->qmp) : -1;
}

void
machines_wait (struct machines *m, int ms)
{
  /* poll() does not see what has been read already. */
  machine_events (&m->source);
  machine_events (&m->dest);
  struct pollfd fds[3]
      = { { .fd = fd_of (&m->source), .events = POLLIN },
          { .fd = fd_of (&m->dest), .events = POLLIN },
          { .fd = atomic_load (m->signal) == 0 ? m->signal_fd : -1, .events = POLLIN } };
  poll (fds, 3, ms);
  machine_events (&m->source);
  machine_events (&m->dest);
}

bool
machines_wait_dead (struct machines *m, struct machine *v)
{
  uint64_t end = clock_ms () + DYING_MS;

  if (!v->peer.is_qemu)
    return false;
  while (!machine_is_dead (v)) {
    if (clock_ms () > end)
      return false;
    machines_wait (m, 10);
  }
  return true;
}
