/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See stop-signals.h.
 */

#include "config.h"

#include "base/stop-signals.h"

void
stop_signals (sigset_t *set)
{
  struct sigaction hup;

  sigemptyset (set);
  sigaddset (set, SIGINT);
  sigaddset (set, SIGTERM);
  /* One that is blocked would be queued although it is ignored. */
  if (sigaction (SIGHUP, NULL, &hup) == 0 && hup.sa_handler != SIG_IGN)
    sigaddset (set, SIGHUP);
}

void
stop_signals_catch (void (*handler) (int))
{
  const struct sigaction act = { .sa_handler = handler };
  sigset_t set;

  stop_signals (&set);
  for (int number = 1; number < NSIG; number++)
    if (sigismember (&set, number) == 1)
      sigaction (number, &act, NULL);
}

bool
stop_signals_pending (void)
{
  sigset_t set, pending;

  stop_signals (&set);
  sigemptyset (&pending);
  sigpending (&pending);
  sigandset (&set, &set, &pending);
  return sigisemptyset (&set) == 0;
}
