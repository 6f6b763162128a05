/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See machines.h.
 */

#include "config.h"

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
machines_wait_with (struct machines *m, struct pollfd *fds, unsigned nr, int ms)
{
  /* poll() does not see what has been read already. */
  machine_events (&m->source);
  machine_events (&m->dest);
  fds[nr] = (struct pollfd){ .fd = fd_of (&m->source), .events = POLLIN };
  fds[nr + 1] = (struct pollfd){ .fd = fd_of (&m->dest), .events = POLLIN };
  fds[nr + 2]
      = (struct pollfd){ .fd = atomic_load (m->signal) == 0 ? m->signal_fd : -1, .events = POLLIN };
  poll (fds, nr + MACHINES_FDS, ms);
  machine_events (&m->source);
  machine_events (&m->dest);
}

void
machines_wait (struct machines *m, int ms)
{
  struct pollfd fds[MACHINES_FDS];

  machines_wait_with (m, fds, 0, ms);
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
