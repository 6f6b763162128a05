/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Starting a thread inside nbdkit.  See own-thread.h.
 */

#include "config.h"

#include <errno.h>
#include <signal.h>

#include "nbd-plugin/own-thread.h"

int
own_thread_start (pthread_t *thread, void *(*run) (void *), void *opaque)
{
  sigset_t all, before;

  sigfillset (&all);
  sigdelset (&all, SIGBUS); /* state/lost-pages.h */
  pthread_sigmask (SIG_SETMASK, &all, &before);
  int r = pthread_create (thread, NULL, run, opaque);
  pthread_sigmask (SIG_SETMASK, &before, NULL);
  if (r == 0)
    return 0;
  errno = r;
  return -1;
}
