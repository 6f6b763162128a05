/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A guardian, so that a coordinator that is killed at a bad moment does not leave a guest that runs
 * nowhere.
 *
 *   guardian (the process that was started)     coordinator (its child, in a session of its own)
 *   waits; passes signals on                    does everything
 *   the coordinator ended in order ------------ its exit status is passed on
 *   it was killed, or crashed -----------------> does what --recover does, several times if it has
 * to it is stopped while the guest is, too long -> the same, after killing it the guardian was
 * killed: that counts as SIGTERM (roll-back up to the commit, after it the end)
 *
 * Both at once: --recover by hand.
 *
 * What the guardian must know beyond what can be seen (that `cont` was sent; that a hand-over was
 * being taken back; settings of the source QEMU; the mirrors' processes) is in a page that both
 * share: guard_note() writes it down.  Each field is one atomic word, or a text that is written
 * once before its flag, so that a coordinator that is killed while it writes leaves nothing half.
 * The guardian does not look at it before the coordinator has gone.
 *
 * The guardian has no connection and no file open while the coordinator lives.  QEMU serves one
 * monitor client at a time: the dead one's connections were closed before wait() told that it is
 * dead (all are close-on-exec, so no worker or hook keeps one).  For the same reason two recoveries
 * cannot work at the same time: whoever has both monitors goes on.
 *
 * The guardian is the reaper of its descendants, so the workers of a dead coordinator become its
 * own children.
 */

#include "config.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cmd/migrate/migrate.h"
#include "base/child.h"

#define TRIES 6
#define TRIES_MS 120000 /* no further one after this */
#define PAUSE_MS 1000
#define TEXT_MAX 2048

struct text {
  _Atomic bool there;
  char text[TEXT_MAX];
};

struct guard {
  _Atomic bool finished; /* with exit_status: the report is out */
  _Atomic int exit_status;
  _Atomic int phase;
  _Atomic bool committed, cont_sent;
  _Atomic bool dest_direct;
  _Atomic int64_t stop_us; /* of the source's STOP */
  struct text token, capabilities, parameters;
  unsigned nr;
  _Atomic pid_t workers[]; /* of the disks; 0: none that is ours */
};

static size_t
guard_size (unsigned nr)
{
  return sizeof (struct guard) + nr * sizeof (_Atomic pid_t);
}

/* ---- the coordinator: what it writes down
 * -------------------------------------------------------- */

/* STOLEN may be NULL. */
static void
keep_text (struct text *t, char *stolen)
{
  if (stolen != NULL && stolen[0] != '\0' && !atomic_load (&t->there)
      && strlen (stolen) < TEXT_MAX) {
    strcpy (t->text, stolen);
    atomic_store (&t->there, true);
  }
  free (stolen);
}

void
guard_note (struct migrate *m)
{
  struct guard *g = m->guard;
  unsigned i;

  if (g == NULL)
    return;
  keep_text (&g->token, strdup (m->result.token));
  if (!atomic_load (&g->capabilities.there))
    keep_text (&g->capabilities,
               m->source.old_caps != NULL ? json_dumps (m->source.old_caps, JSON_COMPACT) : NULL);
  if (!atomic_load (&g->parameters.there))
    keep_text (&g->parameters, m->source.old_params != NULL
                                   ? json_dumps (m->source.old_params, JSON_COMPACT)
                                   : NULL);
  for (i = 0; i < m->nr; i++)
    atomic_store (&g->workers[i], m->disks[i].pid);
  atomic_store (&g->stop_us, (int64_t)(m->source.stop_ms * 1e3));
  atomic_store (&g->dest_direct, m->dest.direct);
  atomic_store (&g->cont_sent, m->cont_sent);
  atomic_store (&g->committed, m->committed);
  atomic_store (&g->phase, (int)m->phase);
}

/* A second signal kills a program that has nobody to look after it.  Here it is the guardian who
 * counts: one that was sent to both, as systemd does, must not end the roll-back. */
static void
keep_handlers (void)
{
  static const int numbers[] = { SIGINT, SIGTERM, SIGHUP };
  struct sigaction sa;
  size_t i;

  for (i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
    if (sigaction (numbers[i], NULL, &sa) == 0 && sa.sa_handler != SIG_IGN
        && sa.sa_handler != SIG_DFL) {
      sa.sa_flags &= ~(int)SA_RESETHAND;
      sigaction (numbers[i], &sa, NULL);
    }
}

void
guard_ready (struct migrate *m)
{
  sigset_t none;

  if (m->guard == NULL)
    return;
  if (!m->o.recover)
    keep_handlers ();
  sigemptyset (&none);
  sigprocmask (SIG_SETMASK, &none, NULL);
  if (m->o.recover) /* the guardian: from now on they end the tries, or us */
    return;
  log_event (m, "coordinator",
             json_pack ("{s:i, s:i}", "pid", (int)getpid (), "guardian", (int)getppid ()));
}

void
guard_finished (struct migrate *m, int status)
{
  if (m->guard == NULL || m->o.recover)
    return;
  fflush (stdout);
  atomic_store (&m->guard->exit_status, status);
  atomic_store (&m->guard->finished, true);
}

/* ---- the guardian: while the coordinator lives
 * ---------------------------------------------------- */

/* Those that are passed on, and the end of a child. */
static void
block_signals (sigset_t *set)
{
  struct sigaction hup;

  signal (SIGCHLD, SIG_DFL); /* ignored, as it may be inherited, nobody could be waited for */
  sigemptyset (set);
  sigaddset (set, SIGCHLD);
  sigaddset (set, SIGINT);
  sigaddset (set, SIGTERM);
  if (sigaction (SIGHUP, NULL, &hup) == 0 && hup.sa_handler != SIG_IGN) /* nohup */
    sigaddset (set, SIGHUP);
  sigprocmask (SIG_BLOCK, set, NULL);
}

/* What has become of it: true if it has ended, with *STATUS as from waitpid.  *STOPPED_MS: since
 * when it is stopped, or 0. */
static bool
has_ended (pid_t coordinator, int *status, double *stopped_ms)
{
  pid_t r;

  while ((r = waitpid (coordinator, status, WNOHANG | WUNTRACED | WCONTINUED)) == coordinator) {
    if (WIFSTOPPED (*status))
      *stopped_ms = migrate_now ();
    else if (WIFCONTINUED (*status))
      *stopped_ms = 0;
    else
      return true;
  }
  if (r == -1 && errno == ECHILD) { /* somebody else has reaped it */
    *status = 0;
    return true;
  }
  return false;
}

/* A guest that is stopped, as it is at any time once its memory is sent, cannot wait for as long as
 * somebody likes; and by then the disks were let go. */
static bool
is_stopped_too_long (const struct migrate *m, double stopped_ms)
{
  int phase = atomic_load (&m->guard->phase);

  return stopped_ms > 0 && ((phase >= PHASE_MEMORY && phase <= PHASE_START) || phase == PHASE_BACK)
         && migrate_now () - stopped_ms > (double)m->o.switch_ms;
}

/* Until it has ended: its status as from waitpid.  *SIGNALS: how many came, and were passed on. The
 * second one kills it; but a terminal that goes away may well say so twice.  None that was sent to
 * a coordinator may end us, who clean up after it. */
static int
watch (const struct migrate *m, pid_t coordinator, const sigset_t *set, int *signals)
{
  static const struct timespec now = { 0, 0 }, second = { 1, 0 };
  double stopped_ms = 0;
  int status, number;

  *signals = 0;
  while (!has_ended (coordinator, &status, &stopped_ms)) {
    if (is_stopped_too_long (m, stopped_ms)) {
      cmd_warning ("the process that coordinates the migration is stopped, and the guest may be: "
                   "killing it");
      kill (coordinator, SIGKILL);
      stopped_ms = 0;
    }
    number = sigtimedwait (set, NULL, stopped_ms > 0 ? &second : NULL);
    if (number == -1 || number == SIGCHLD)
      continue;
    (*signals)++;
    kill (coordinator, *signals > 1 && number != SIGHUP ? SIGKILL : number);
  }
  while ((number = sigtimedwait (set, NULL, &now)) > 0)
    *signals += number != SIGCHLD;
  return status;
}

/* ---- the guardian: after a coordinator that was killed
 * --------------------------------------------- */

static void
take_notes (struct migrate *m)
{
  struct guard *g = m->guard;
  unsigned i;

  m->phase = (enum phase)atomic_load (&g->phase);
  m->known.phase = m->phase;
  m->known.committed = atomic_load (&g->committed);
  m->known.cont_sent = atomic_load (&g->cont_sent);
  m->known.dest_direct = atomic_load (&g->dest_direct);
  m->source.stop_ms = (double)atomic_load (&g->stop_us) / 1e3;
  if (atomic_load (&g->token.there))
    snprintf (m->known.token, sizeof m->known.token, "%.*s", HANDOFF_TOKEN_MAX, g->token.text);
  if (atomic_load (&g->capabilities.there))
    m->source.old_caps = json_loads (g->capabilities.text, 0, NULL);
  if (atomic_load (&g->parameters.there))
    m->source.old_params = json_loads (g->parameters.text, 0, NULL);
  for (i = 0; i < m->nr; i++) {
    struct disk *d = &m->disks[i];

    d->pid = atomic_load (&g->workers[i]);
    d->ours = d->pid > 0;
    /* No child of ours any more: the number may be another's by now. */
    d->ended = d->pid > 0 && child_ended (d->pid, 0, &d->wait_status);
  }
}

/* What a try has learned is known to the next one: as by the coordinator, a hand-over whose guest
 * could not be started, and certainly has not run, is taken back. */
static void
forget_try (struct migrate *m)
{
  if (m->committed && !m->cont_sent) {
    m->known.phase = PHASE_BACK;
    m->known.committed = true;
  }
  coordinator_free (m->coordinator);
  m->coordinator = NULL;
  coordinator_result_free (&m->result);
  memset (&m->result, 0, sizeof m->result);
  m->held = m->committed = false;
  m->known.cont_sent = m->known.cont_sent || m->cont_sent;
}

int
guard_recover (struct migrate *m)
{
  double end = migrate_now () + TRIES_MS;
  int try, status = EXIT_ERROR;

  take_notes (m);
  migrate_fail (m, m->exit_status, "%s", m->died);
  log_break (m);
  cmd_warning ("%s: looking where things stand", m->died);
  for (try = 1; try <= TRIES; try++) {
    log_event (m, "guardian", json_pack ("{s:i}", "try", try));
    forget_try (m);
    status = migrate_recover (m);
    if (status == EXIT_DONE || try == TRIES || migrate_now () > end || atomic_load (m->signal) != 0)
      break;
    cmd_notice ("once more in %d ms", PAUSE_MS);
    migrate_wait (m, PAUSE_MS);
  }
  if (status != EXIT_DONE) {
    cmd_error ("given up after %d tries: run this command with --recover, see nbdmirror-migrate(1)",
               try);
    return EXIT_ERROR;
  }
  return m->phase == PHASE_DONE ? EXIT_DONE : m->exit_status;
}

/* Whatever it was: a signal; or a sanitizer, or a library, that has ended the process. */
static void
say_died (struct migrate *m, int status)
{
  if (WIFSIGNALED (status))
    snprintf (m->died, sizeof m->died,
              "the process that coordinates the migration was killed by signal %d",
              WTERMSIG (status));
  else
    snprintf (m->died, sizeof m->died,
              "the process that coordinates the migration has ended with status %d before"
              " its time",
              WEXITSTATUS (status));
}

/* ---- both
 * ------------------------------------------------------------------------------------------ */

/* The child's beginning.  False: the guardian has died meanwhile, and nothing was begun. */
static bool
become_coordinator (pid_t guardian)
{
  setsid (); /* Ctrl-C reaches the guardian alone */
  prctl (PR_SET_PDEATHSIG, SIGTERM);
  return getppid () == guardian;
}

static int
guard (struct migrate *m, int (*work) (struct migrate *m))
{
  pid_t guardian = getpid (), coordinator;
  sigset_t set;
  int status, signals;

  block_signals (&set);
  fflush (NULL);
  prctl (PR_SET_CHILD_SUBREAPER, 1);
  coordinator = fork ();
  if (coordinator == -1) {
    cmd_error ("fork: %s", strerror (errno));
    return EXIT_ERROR;
  }
  if (coordinator == 0)
    return become_coordinator (guardian) ? work (m) : EXIT_CANCELLED;
  status = watch (m, coordinator, &set, &signals);
  if (atomic_load (&m->guard->finished))
    return WIFEXITED (status) ? WEXITSTATUS (status) : atomic_load (&m->guard->exit_status);
  say_died (m, status);
  m->o.recover = true;
  m->exit_status = signals > 0 ? EXIT_CANCELLED : EXIT_ERROR;
  return work (m);
}

int
guard_run (struct migrate *m, int (*work) (struct migrate *m))
{
  struct guard *g
      = mmap (NULL, guard_size (m->nr), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  int status;

  if (g == MAP_FAILED) {
    cmd_error ("mmap: %s", strerror (errno));
    return EXIT_ERROR;
  }
  m->guard = g;
  status = guard (m, work);
  m->guard = NULL;
  munmap (g, guard_size (m->nr));
  return status;
}
