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
#include <sys/syscall.h>
#include <unistd.h>

#include <nbdkit-filter.h>

#include "base/fd.h"
#include "nbd-plugin/receive/orphan.h"

#define LOOK_MS 500
#define PATIENCE_MS 3000 /* as the supervisor's */

static pthread_t thread;
static bool runs, is_orphan;
static int supervisor_fd, backend = -1, stop_fd = -1;
static bool (*is_in_use) (void);

static bool
told_to_stop (int timeout_ms)
{
  struct pollfd fd = { .fd = stop_fd, .events = POLLIN };

  return poll (&fd, 1, timeout_ms) > 0;
}

static void
end_backend (void)
{
#ifdef SYS_pidfd_send_signal
  if (backend != -1 && is_orphan && syscall (SYS_pidfd_send_signal, backend, SIGTERM, NULL, 0) == -1
      && errno != ESRCH)
    nbdkit_error ("the process behind this server cannot be ended: %m");
#endif
}

/* No events are asked for: a pipe that nobody reads any more says POLLERR. */
static bool
supervisor_gone (void)
{
  struct pollfd fds[2] = { { .fd = supervisor_fd }, { .fd = stop_fd, .events = POLLIN } };

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
  while (is_in_use ())
    if (told_to_stop (LOOK_MS))
      return NULL;
  is_orphan = true;
  nbdkit_shutdown ();
  if (told_to_stop (PATIENCE_MS))
    return NULL;
  end_backend ();
  kill (getpid (), SIGKILL);
  return NULL;
}

int
orphan_watch_start (int notify_fd, int backend_fd, bool (*in_use) (void))
{
  sigset_t all, before;

  supervisor_fd = notify_fd;
  backend = backend_fd;
  is_in_use = in_use;
  /* nbdkit 1.32 (with -f) would end at once, also under a guest.  We are in the thread that has
   * asked for it. */
  prctl (PR_SET_PDEATHSIG, 0);
  stop_fd = fd_wake_new ();
  if (stop_fd == -1)
    return -1;
  sigfillset (&all);
  pthread_sigmask (SIG_SETMASK, &all, &before);
  errno = pthread_create (&thread, NULL, watch, NULL);
  pthread_sigmask (SIG_SETMASK, &before, NULL);
  runs = errno == 0;
  return runs ? 0 : -1;
}

void
orphan_watch_stop (void)
{
  if (runs) {
    fd_wake (stop_fd);
    pthread_join (thread, NULL);
    runs = false;
  }
  end_backend (); /* after the last request */
  fd_close (&stop_fd);
}
