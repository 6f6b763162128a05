/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup: a repository that does not answer, because its server has gone for instance.
 *
 * The kernel then keeps a thread that reads or writes there, and signals do not reach it.  A second
 * thread, which never touches the repository, says what is waited for.  If the user has asked for
 * the end, it also ends the process: that is as harmless as to kill it, see backup.h.  No guest
 * waits meanwhile: what is done in the repository is done before or after the instant.
 */

#include "config.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/stop-signals.h"
#include "cmd/backup/backup.h"

#define LOOK_MS 500
#define TELL_MS 40000 /* more than what may take its time: a lock is waited for for 30 s */
#define LEAVE_MS 3000 /* after the last sign of life, where the end is wanted */

static struct {
  const struct backup_run *run;
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  bool started, over;        /* the second one under the lock */
  _Atomic uint64_t since_ms; /* of the last sign of life; 0: the repository is not used */
  _Atomic bool limited;      /* --max-duration counts now */
} watch = { .lock = PTHREAD_MUTEX_INITIALIZER };

void
backup_watch (bool on, bool limited)
{
  atomic_store (&watch.limited, limited);
  atomic_store (&watch.since_ms, on ? clock_ms () : 0);
}

void
backup_watch_alive (void)
{
  if (atomic_load (&watch.since_ms) != 0)
    atomic_store (&watch.since_ms, clock_ms ());
}

/* Has the user asked for the end?  0, or the exit status.  A signal stays pending while the thread
 * that it is for is kept by the kernel. */
static int
wanted_status (void)
{
  const struct backup_run *run = watch.run;

  if (backup_signal != 0 || stop_signals_pending ())
    return EXIT_CANCELLED;
  bool too_late = run->max_duration_ms != 0 && clock_ms () - run->begun_ms >= run->max_duration_ms;
  return too_late && atomic_load (&watch.limited) ? EXIT_NOT_CONVERGED : 0;
}

static void
look (uint64_t *told)
{
  uint64_t since = atomic_load (&watch.since_ms), now = clock_ms ();
  uint64_t silent = since != 0 && since < now ? now - since : 0;
  int status = silent >= LEAVE_MS ? wanted_status () : 0;

  if (status != 0) {
    cmd_say ("%s does not answer, so this ends here: the guest goes on, and the next backup removes"
             " what is left",
             watch.run->place);
    backup_remove_folder (watch.run);
    _exit (status);
  }
  if (since != *told && silent >= TELL_MS) {
    *told = since;
    cmd_say ("%s has not answered for %d s and is waited for; the guest goes on", watch.run->place,
             TELL_MS / 1000);
  }
}

static void *
look_again_and_again (void *opaque)
{
  uint64_t told = 0;

  (void)opaque;
  pthread_mutex_lock (&watch.lock);
  while (!watch.over) {
    struct timespec next = clock_timespec (clock_ns () + LOOK_MS * NS_PER_MS);
    if (pthread_cond_timedwait (&watch.changed, &watch.lock, &next) != 0)
      look (&told);
  }
  pthread_mutex_unlock (&watch.lock);
  return NULL;
}

void
backup_watch_start (const struct backup_run *run)
{
  pthread_condattr_t attr;
  sigset_t all, before;

  watch.run = run;
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&watch.changed, &attr);
  pthread_condattr_destroy (&attr);
  sigfillset (&all); /* signals are for the other thread, whose waits they interrupt */
  pthread_sigmask (SIG_SETMASK, &all, &before);
  watch.started = pthread_create (&watch.thread, NULL, look_again_and_again, NULL) == 0;
  pthread_sigmask (SIG_SETMASK, &before, NULL);
}

void
backup_watch_end (void)
{
  pthread_mutex_lock (&watch.lock);
  watch.over = true;
  pthread_cond_signal (&watch.changed);
  pthread_mutex_unlock (&watch.lock);
  if (watch.started)
    pthread_join (watch.thread, NULL);
}
