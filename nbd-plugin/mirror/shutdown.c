/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Watching the signals that stop nbdkit.  See shutdown.h.
 */

#include "config.h"

#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>

#include "base/fd.h"
#include "nbd-plugin/mirror/shutdown.h"

static const int signals[] = { SIGINT, SIGQUIT, SIGTERM };
#define NR_SIGNALS (sizeof signals / sizeof signals[0])

/* Static, because a signal handler gets no pointer.  All but SIGNALLED is constant while a handler
 * of ours is installed. */
static struct {
  struct sigaction before[NR_SIGNALS]; /* nbdkit's */
  bool watched[NR_SIGNALS];
  int wake_fd;
  _Atomic bool signalled;
} watch;

static void
on_signal (int sig, siginfo_t *info, void *context)
{
  atomic_store (&watch.signalled, true);
  fd_wake (watch.wake_fd);
  for (size_t i = 0; i < NR_SIGNALS; i++)
    if (signals[i] == sig) {
      if ((watch.before[i].sa_flags & SA_SIGINFO) != 0)
        watch.before[i].sa_sigaction (sig, info, context);
      else
        watch.before[i].sa_handler (sig);
    }
}

static bool
calls_a_function (const struct sigaction *s)
{
  return (s->sa_flags & SA_SIGINFO) != 0 || (s->sa_handler != SIG_DFL && s->sa_handler != SIG_IGN);
}

void
shutdown_watch (int wake_fd)
{
  watch.wake_fd = wake_fd;
  for (size_t i = 0; i < NR_SIGNALS; i++) {
    if (sigaction (signals[i], NULL, &watch.before[i]) == -1
        || !calls_a_function (&watch.before[i]))
      continue;
    struct sigaction ours = watch.before[i];
    ours.sa_flags |= SA_SIGINFO;
    ours.sa_sigaction = on_signal;
    watch.watched[i] = sigaction (signals[i], &ours, NULL) == 0;
  }
}

void
shutdown_unwatch (void)
{
  for (size_t i = 0; i < NR_SIGNALS; i++)
    if (watch.watched[i]) {
      sigaction (signals[i], &watch.before[i], NULL);
      watch.watched[i] = false;
    }
}

bool
shutdown_signalled (void)
{
  return atomic_load (&watch.signalled);
}
