/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A server whose supervisor was killed.  See orphan.h.
 */

#include "config.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <nbdkit-filter.h>

#include "base/fd.h"
#include "nbd-plugin/own-thread.h"
#include "nbd-plugin/receive/orphan.h"

#define LOOK_MS 500
#define PATIENCE_MS 3000 /* as the supervisor's */

/* nbdkit's process has one supervisor, so there is one watch a process. */
static struct {
  pthread_t thread;
  bool runs;
  int supervisor_fd, stop_fd;
  bool (*in_use) (void);
} orphan = { .stop_fd = -1 };

static bool
told_to_stop (int timeout_ms)
{
  struct pollfd fd = { .fd = orphan.stop_fd, .events = POLLIN };

  return poll (&fd, 1, timeout_ms) > 0;
}

/* No events are asked for: a pipe that nobody reads any more says POLLERR. */
static bool
supervisor_gone (void)
{
  struct pollfd fds[2]
      = { { .fd = orphan.supervisor_fd }, { .fd = orphan.stop_fd, .events = POLLIN } };

  while (poll (fds, 2, -1) == -1 && errno == EINTR)
    ;
  return fds[1].revents == 0;
}

static void *
watch (void *opaque)
{
  (void)opaque;
  if (!supervisor_gone ())
    return NULL;
  nbdkit_error (
      "the process that supervises this server is gone: it ends as soon as no guest uses the disk");
  while (orphan.in_use ())
    if (told_to_stop (LOOK_MS))
      return NULL;
  nbdkit_shutdown ();
  if (told_to_stop (PATIENCE_MS))
    return NULL;
  kill (getpid (), SIGKILL);
  return NULL;
}

int
orphan_watch_start (int notify_fd, bool (*in_use) (void))
{
  orphan.supervisor_fd = notify_fd;
  orphan.in_use = in_use;
  /* nbdkit 1.32 (with -f) would end at once, also under a guest.  We are in the thread that has
   * asked for it. */
  prctl (PR_SET_PDEATHSIG, 0);
  orphan.stop_fd = fd_wake_new ();
  if (orphan.stop_fd == -1)
    return -1;
  if (own_thread_start (&orphan.thread, watch, NULL) == -1)
    return -1;
  orphan.runs = true;
  return 0;
}

void
orphan_watch_stop (void)
{
  if (orphan.runs) {
    fd_wake (orphan.stop_fd);
    pthread_join (orphan.thread, NULL);
    orphan.runs = false;
  }
  fd_close (&orphan.stop_fd);
}
