/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The control thread.  See thread.h.
 *
 * It is woken by clients, by the gate, by the loss of "synchronised" and by signals (wake_fd), by
 * the end of the worker's process (pidfd), when a disk that is received is sealed, and by time:
 * every POLL_MS while something has a time limit; when the lease of a hold ends; every
 * PREPARED_POLL_MS while it is prepared, since the decision word changes without any message; every
 * second while there is a job in a state file; and every two seconds or more otherwise.
 */

#include "config.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include <nbdkit-filter.h>

#include "base/clock.h"
#include "base/fd.h"
#include "nbd-plugin/mirror/filter.h"
#include "nbd-plugin/mirror/receiving.h"
#include "nbd-plugin/mirror/shutdown.h"
#include "nbd-plugin/mirror/status.h"
#include "nbd-plugin/mirror/thread.h"
#include "nbd-plugin/own-thread.h"

#define SOON_MS 10    /* while an answer waits for something that wakes nobody reliably */
#define POLL_MS 100   /* while something has a time limit, or is to be tried again */
#define PEERS_MS 2000 /* else, while there are clients: a plugin may stop the server */
#define IDLE_MS 10000 /* else: nothing is waited for, this is only to be safe */

void
mirror_tick (struct mirror *m)
{
  struct control_peer *dead = attachment_dead_worker (&m->attachment);

  if (dead != NULL) {
    participant_worker_gone (m, "detached", "the worker's process ended");
    control_peer_close (dead);
  }
  if (m->attachment.worker != NULL)
    measurement_end (m);
  attachment_tick (m);
  if (relay_expire (&m->attachment.relays))
    participant_abort (m, "GenericError", "worker does not answer");
  participant_tick (m);
  persist_tick (m);
  receiving_tick (m);
  checkpoints_tick (m);
  pace_tick (&m->pace, (int64_t)clock_ns ());
  mirror_tell (m);
}

/* Does everything that we wait for wake us?  Not so where it has a time limit or is to be tried
 * again, where a process cannot be polled for, while the guest is throttled, and until the worker
 * has caught up, which it tells in shared memory. */
static bool
is_idle (const struct mirror *m, const struct pace_view *pace)
{
  const struct attachment *a = &m->attachment;

  return !m->participant.active && m->checkpointing.decision == NULL && !m->checkpointing.committing
         && m->fence.state != FENCE_DRAFT && a->relays.first == NULL && a->hold.peer == NULL
         && a->attach.peer == NULL && !persist_settles (m)
         && (pace->mode == PACE_OPEN || pace->synchronised)
         && (a->process.fd != -1 || a->process.start_time == 0);
}

static int
next_timeout (struct mirror *m)
{
  struct gate_view gate;
  struct pace_view pace;

  pace_look (&m->pace, &pace);
  int64_t ms = !is_idle (m, &pace)                               ? POLL_MS
               : m->persist.open && m->attachment.region != NULL ? PERSIST_NOTE_MS
               : control_server_peers (m->server) > 0            ? PEERS_MS
                                                                 : IDLE_MS;
  gate_look (&m->gate, &gate);
  if (gate.mode == GATE_HELD) {
    int64_t left = (gate.lease_end_ns - (int64_t)clock_ns ()) / NS_PER_MS + 1;
    if (left < ms)
      ms = left < 0 ? 0 : left;
    if (gate.prepared && ms > PREPARED_POLL_MS)
      ms = PREPARED_POLL_MS;
  }
  /* The worker tells in shared memory that it has caught up, which wakes nobody; but first it says
   * that it is not degraded any more. */
  bool catches_up = pace.mode == PACE_SYNCHRONOUS && !pace.synchronised
                    && strcmp (mirror_state (m), "degraded") != 0;
  bool waits = catches_up || m->attachment.hold.peer != NULL || m->attachment.attach.peer != NULL
               || (m->participant.generation != 0 && !m->participant.prepared)
               || (m->checkpointing.decision != NULL && !m->checkpointing.prepared);
  return waits && ms > SOON_MS ? SOON_MS : (int)ms;
}

static void
wait_for_something (struct mirror *m)
{
  struct pollfd extra[3] = { { .fd = m->gate.wake_fd, .events = POLLIN } };
  const int others[2] = { m->attachment.process.fd, receiving_wake_fd (m) };
  unsigned nr_extra = 1;

  for (unsigned i = 0; i < 2; i++)
    if (others[i] != -1)
      extra[nr_extra++] = (struct pollfd){ .fd = others[i], .events = POLLIN };

  if (control_server_poll (m->server, next_timeout (m), extra, nr_extra) == -1) {
    nbdkit_error ("mirror: control socket %s: %m", m->config.control);
    poll (extra, nr_extra, POLL_MS); /* the gate still needs us */
  }
  if (extra[0].revents & POLLIN)
    fd_wake_clear (m->gate.wake_fd);
}

/* nbdkit waits for every client to leave, the worker's own NBD connection included: tell it.
 * Waiting guests are told by nbdkit, through their own probes; the gate opens for nobody. */
static void
shut_down (struct mirror *m)
{
  gate_stop (&m->gate);
  pace_end (&m->pace);
  participant_shutdown (m);
  checkpoints_shutdown (m);
  mirror_tell (m);
  if (m->attachment.worker != NULL)
    control_event (m->server, m->attachment.worker, "MIRROR_SHUTDOWN", NULL);
  control_event (m->server, NULL, "SHUTDOWN",
                 json_pack ("{s:b, s:s}", "guest", 0, "reason", "host-signal"));
}

/* Does the server stop?  *ASKED is when nbdkit was asked last.  Asking makes it log an error when
 * the answer is yes, so it is asked only while a client keeps the server from ending. */
static bool
server_stops (struct mirror *m, uint64_t *asked)
{
  if (shutdown_signalled ())
    return true;
  uint64_t now = clock_ms ();
  if (control_server_peers (m->server) == 0 || now - *asked < POLL_MS / 2)
    return false;
  *asked = now;
  return nbdkit_nanosleep (0, 0) == -1 && errno == ESHUTDOWN;
}

static void *
control_thread (void *opaque)
{
  struct mirror *m = opaque;
  uint64_t asked = 0;

  while (!atomic_load (&m->stop)) {
    wait_for_something (m);
    mirror_tick (m);
    if (server_stops (m, &asked))
      break;
  }
  shut_down (m);
  control_server_free (m->server);
  m->server = NULL;
  return NULL;
}

int
mirror_thread_start (struct mirror *m)
{
  if (own_thread_start (&m->thread, control_thread, m) == -1)
    return -1;
  m->thread_runs = true;
  shutdown_watch (m->gate.wake_fd);
  pthread_setname_np (m->thread, "mirror-control");
  return 0;
}

void
mirror_thread_stop (struct mirror *m)
{
  if (!m->thread_runs)
    return;
  shutdown_unwatch ();
  atomic_store (&m->stop, true);
  gate_wake (&m->gate);
  pthread_join (m->thread, NULL);
  m->thread_runs = false;
}
