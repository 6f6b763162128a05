/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See guard.h.
 */

#include "config.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/stop-signals.h"
#include "cmd/cmd.h"
#include "cmd/migrate/guard.h"
#include "cmd/worker.h"

/* ---- signals -------------------------------------------------------------------------------- */

void
guard_ready (const struct guard_death *death)
{
  sigset_t none;

  /* A second signal kills a program that has nobody to look after it.  Here it is the guardian that
   * counts: one that was sent to both, as systemd does, must not end the roll-back. */
  if (death == NULL)
    worker_signals_never_kill ();
  sigemptyset (&none);
  sigprocmask (SIG_SETMASK, &none, NULL);
}

/* Block those that are passed on, and the one that tells the end of a child. */
static void
block_signals (sigset_t *set)
{
  stop_signals (set);
  sigaddset (set, SIGCHLD);
  sigprocmask (SIG_BLOCK, set, NULL);
}

/* ---- while the coordinator lives ------------------------------------------------------------ */

/* What has become of it?  True if it has ended, with *STATUS as from waitpid().  *STOPPED_SINCE: on
 * the clock of clock_ms(), 0 while it is not stopped. */
static bool
has_ended (pid_t coordinator, int *status, uint64_t *stopped_since)
{
  pid_t r;

  while ((r = waitpid (coordinator, status, WNOHANG | WUNTRACED | WCONTINUED)) == coordinator) {
    if (WIFSTOPPED (*status))
      *stopped_since = clock_ms ();
    else if (WIFCONTINUED (*status))
      *stopped_since = 0;
    else
      return true;
  }
  if (r == -1 && errno == ECHILD) { /* somebody else has reaped it */
    *status = 0;
    return true;
  }
  return false;
}

/* From the time on when the memory is copied the guest may be stopped, and cannot wait for as long
 * as somebody likes.  The disks were let go by then. */
static bool
may_hold_the_guest (enum phase phase)
{
  return (phase >= PHASE_MEMORY && phase <= PHASE_START) || phase == PHASE_BACK;
}

/* Is a signal that came first at *FIRST_MS, or now (0), meant for the second time? */
static bool
comes_again (uint64_t *first_ms)
{
  uint64_t now = clock_ms ();

  if (*first_ms == 0)
    *first_ms = now;
  return now - *first_ms >= WORKER_AGAIN_MS;
}

/* Until it has ended: its status as from waitpid().  *SIGNALS: how many came, and were passed on.
 * The same one again kills it.  No signal that was sent to a coordinator may end us, because we
 * clean up after it. */
static int
watch (const struct notes *notes, uint64_t stopped_ms, pid_t coordinator, const sigset_t *set,
       int *signals)
{
  static const struct timespec now = { 0, 0 }, second = { 1, 0 };
  uint64_t stopped_since = 0, first_ms[_NSIG] = { 0 };
  int status, number;

  *signals = 0;
  while (!has_ended (coordinator, &status, &stopped_since)) {
    if (stopped_since > 0 && clock_ms () - stopped_since > stopped_ms
        && may_hold_the_guest (notes_read_phase (notes))) {
      cmd_warning ("the process that coordinates the migration is stopped, and the guest may be: "
                   "killing it");
      kill (coordinator, SIGKILL);
      stopped_since = 0;
    }
    number = sigtimedwait (set, NULL, stopped_since > 0 ? &second : NULL);
    if (number == -1 || number == SIGCHLD)
      continue;
    (*signals)++;
    kill (coordinator, comes_again (&first_ms[number]) ? SIGKILL : number);
  }
  while ((number = sigtimedwait (set, NULL, &now)) > 0)
    *signals += number != SIGCHLD;
  return status;
}

/* Whatever it was: a signal; or a sanitizer, or a library, that has ended the process. */
static void
describe_death (struct guard_death *death, int status)
{
  if (WIFSIGNALED (status))
    snprintf (death->how, sizeof death->how,
              "the process that coordinates the migration was killed by signal %d",
              WTERMSIG (status));
  else
    snprintf (death->how, sizeof death->how,
              "the process that coordinates the migration has ended with status %d before its"
              " time",
              WEXITSTATUS (status));
}

/* ---- both ----------------------------------------------------------------------------------- */

/* The child's beginning.  False: the guardian has died meanwhile, and nothing was begun. */
static bool
become_coordinator (pid_t guardian)
{
  setsid (); /* Ctrl-C reaches the guardian alone */
  prctl (PR_SET_PDEATHSIG, SIGTERM);
  return getppid () == guardian;
}

int
guard_run (struct notes *notes, uint64_t stopped_ms, guard_work *work, void *opaque)
{
  pid_t guardian = getpid ();
  sigset_t set;

  block_signals (&set);
  fflush (NULL);
  prctl (PR_SET_CHILD_SUBREAPER, 1);
  pid_t coordinator = fork ();
  if (coordinator == -1) {
    cmd_say ("fork: %s", strerror (errno));
    return EXIT_ERROR;
  }
  if (coordinator == 0)
    return become_coordinator (guardian) ? work (opaque, NULL) : EXIT_CANCELLED;
  int signals, finished;
  int status = watch (notes, stopped_ms, coordinator, &set, &signals);
  if (notes_read_finished (notes, &finished))
    return WIFEXITED (status) ? WEXITSTATUS (status) : finished;
  struct guard_death death = { .cancelled = signals > 0 };
  describe_death (&death, status);
  return work (opaque, &death);
}
