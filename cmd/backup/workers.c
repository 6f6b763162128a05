/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup: a new file and a worker for each disk.  A worker is `nbdmirror mirror` in a process of
 * its own, which writes the file through a qemu-nbd of its own.  If we are killed it detaches, and
 * the next backup takes its job away.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/child.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/backup/backup.h"
#include "cmd/control-query.h"
#include "cmd/units.h"

#define LOOK_MS 50 /* for signals, the time limit, and workers that end early */
#define TELL_MS 5000
#define END_MS 30000
#define STOPPED_MS 5000
#define WORDS_MAX 40

static char *
log_of (const struct backup_run *run, unsigned nr, const char *suffix)
{
  return text_printf ("%s/%u.%s", run->folder, nr, suffix);
}

/* ---- the worker ---- */

/* In the child. */
static void
become_worker (char *const *words, const char *log, pid_t parent)
{
  int fd = open (log, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

  prctl (PR_SET_PDEATHSIG, SIGTERM); /* it leaves, and the next backup takes over */
  if (getppid () != parent || fd == -1)
    _exit (EXIT_ERROR);
  setpgid (0, 0); /* a Ctrl-C is ours to pass on */
  signal (SIGINT, SIG_DFL);
  signal (SIGTERM, SIG_DFL);
  dup2 (fd, STDOUT_FILENO);
  dup2 (fd, STDERR_FILENO);
  execv ("/proc/self/exe", words);
  _exit (127);
}

static unsigned
worker_words (const struct backup_run *run, const struct backup_disk *d, const char *report,
              const char *path, const char **words)
{
  unsigned n = 0;

  words[n++] = "nbdmirror";
  words[n++] = "mirror";
  words[n++] = d->control;
  words[n++] = "--policy";
  words[n++] = run->policy;
  words[n++] = "--max-downtime";
  words[n++] = run->max_downtime;
  words[n++] = "--give-up-after";                     /* a repository that is full, or gone */
  words[n++] = run->store.far != NULL ? "30s" : "5s"; /* a login takes longer than a file */
  words[n++] = "--give-up-if-stalled";
  words[n++] = "60s";
  words[n++] = "--report";
  words[n++] = report;
  if (run->bandwidth != NULL) {
    words[n++] = "--bandwidth";
    words[n++] = run->bandwidth;
  }
  if (run->budget != NULL) {
    words[n++] = "--budget";
    words[n++] = run->budget;
  }
  if (d->restart)
    words[n++] = "--restart";
  if (!d->full) {
    words[n++] = "--sync";
    words[n++] = "incremental";
    words[n++] = "--since";
    words[n++] = d->since;
    /* The manifest proves it; a sample is looked at besides. */
    words[n++] = "--trust-destination=64";
  }
  if (run->store.far != NULL) {
    words[n++] = path;
    words[n] = NULL;
    return n;
  }
  words[n++] = "[";
  words[n++] = "qemu-nbd";
  words[n++] = "--persistent";
  words[n++] = "--shared=0";
  words[n++] = "--format=qcow2";
  words[n++] = "--discard=unmap";
  words[n++] = "--cache=unsafe"; /* only the fsync at its end counts: see store_seal() */
  words[n++] = path;
  words[n++] = "]";
  words[n] = NULL;
  return n;
}

/* End the job that an interrupted backup has left over.  What it had still to copy would be copied
 * by the new one as well. */
static bool
end_left_job (struct backup_disk *d)
{
  CLEANUP_TEXT char *class_ = NULL, *error = NULL;
  const struct control_call call = { .command = "block-job-cancel",
                                     .args = json_pack ("{s:s}", "device", "mirror"),
                                     .timeout_ms = QUERY_MS,
                                     .class_ = &class_ };

  d->restart = false;
  if (control_client_call (d->client, &call, &error) == 0)
    return true;
  /* It has ended since the status was asked for, or is in the state file only: the worker sees. */
  d->restart = class_ != NULL && strcmp (class_, "DeviceNotActive") == 0;
  if (d->restart)
    return true;
  backup_fail (d, EXIT_ERROR, "the job that is left over cannot be ended: %s", error);
  return false;
}

void
backup_start_worker (struct backup_run *run, struct backup_disk *d, unsigned nr)
{
  CLEANUP_TEXT char *log = log_of (run, nr, "log"), *report = log_of (run, nr, "json");
  CLEANUP_TEXT char *error = NULL;
  const char *words[WORDS_MAX];

  d->file = backup_file_path (d->id, run->name, d->full);
  CLEANUP_TEXT char *path = store_endpoint (&run->store, d->file);
  if (store_make_file (&run->store, d->file, d->parent_file, d->size, run->compress, &error)
      == -1) {
    backup_fail (d, EXIT_DEST_FAILED, "%s", error);
    return;
  }
  if (d->restart && !end_left_job (d))
    return;
  worker_words (run, d, report, path, words);
  fflush (NULL);
  pid_t parent = getpid ();
  d->worker = fork ();
  if (d->worker == 0)
    become_worker ((char *const *)words, log, parent);
  if (d->worker == -1) {
    d->worker = 0;
    backup_fail (d, EXIT_ERROR, "fork: %s", strerror (errno));
  }
}

/* The last thing that the worker has said, without its own name.  For text_free(). */
static char *
last_words (const struct backup_run *run, unsigned nr)
{
  CLEANUP_TEXT char *log = log_of (run, nr, "log");
  CLEANUP_FD int fd = open (log, O_RDONLY | O_CLOEXEC);
  static const char prefix[] = "nbdmirror: mirror: ";
  char text[4096] = "";
  struct stat st;

  if (fd == -1 || fstat (fd, &st) == -1)
    return text_copy ("the worker said nothing");
  if ((size_t)st.st_size >= sizeof text)
    lseek (fd, -(off_t)(sizeof text - 1), SEEK_END);
  fd_read_text (fd, text, sizeof text);
  char *best = NULL;
  for (char *line = strtok (text, "\n"); line != NULL; line = strtok (NULL, "\n"))
    if (strncmp (line, prefix, strlen (prefix)) == 0
        && strstr (line, "gave up: changes go on") == NULL)
      best = line + strlen (prefix);
  return text_copy (best != NULL ? best : "the worker has ended without a reason");
}

static void
take_report (const struct backup_run *run, struct backup_disk *d, unsigned nr)
{
  CLEANUP_TEXT char *path = log_of (run, nr, "json");
  json_t *o = json_load_file (path, 0, NULL);

  d->copied = (uint64_t)status_number (o, "sent-bytes", 0);
  json_decref (o);
}

/* Has the worker ended?  Then its status and reason are noted. */
static bool
has_ended (const struct backup_run *run, struct backup_disk *d, unsigned nr, int wait_ms)
{
  int status;

  if (d->worker == 0)
    return true;
  if (!child_ended (d->worker, wait_ms, &status))
    return false;
  d->worker = 0;
  take_report (run, d, nr);
  if (!WIFEXITED (status))
    backup_fail (d, EXIT_ERROR, "the worker was killed by signal %d", WTERMSIG (status));
  else if (WEXITSTATUS (status) != 0) {
    CLEANUP_TEXT char *why = last_words (run, nr);
    backup_fail (d, WEXITSTATUS (status), "%s", why);
  }
  return true;
}

void
backup_end_worker (struct backup_run *run, struct backup_disk *d, unsigned nr, int sig)
{
  if (d->worker == 0)
    return;
  if (sig != 0)
    kill (d->worker, sig);
  if (has_ended (run, d, nr, END_MS))
    return;
  kill (d->worker, SIGKILL);
  backup_fail (d, EXIT_ERROR, "the worker does not end, so it was killed");
  has_ended (run, d, nr, END_MS);
}

/* ---- until all are ready ---- */

static bool
is_ready (struct backup_disk *d, char **line)
{
  CLEANUP_TEXT char *error = NULL;
  json_t *status = NULL;
  const struct control_call call
      = { .command = "query-mirror", .timeout_ms = QUERY_MS, .ret = &status };
  char left[UNITS_BUF];

  if (control_client_call (d->client, &call, &error) == -1) {
    backup_fail (d, EXIT_ERROR, "%s", error);
    return false;
  }
  const char *state = status_text (status, "state");
  bool ours = (pid_t)status_number (status, "worker-pid", 0) == d->worker;
  bool ready = ours && state != NULL && strcmp (state, "ready") == 0;
  double bytes = status_left (status);
  text_free (*line);
  *line = text_printf ("%s: %s, %.0f %% done, %s left", d->id,
                       ours && state != NULL ? state : "beginning", status_percent (status),
                       bytes >= 0 ? units_format_size (left, (uint64_t)bytes) : "?");
  json_decref (status);
  return ready;
}

/* Take what D's server has told unasked.  True if that was anything: it may be that the job is
 * ready, which is asked for then. */
static bool
take_events (struct backup_disk *d)
{
  CLEANUP_TEXT char *error = NULL; /* a server that is lost is found out by the next question */
  json_t *data = NULL;
  char *name = NULL;
  bool any = false;

  while (control_client_next_event (d->client, 0, &name, &data, &error) == 1) {
    free (name);
    json_decref (data);
    any = true;
  }
  return any;
}

/* Until a server tells something, or it is time to look. */
static void
wait_for_news (struct backup_run *run)
{
  struct pollfd *fds = calloc (run->nr_disks, sizeof *fds);
  bool any = false;
  nfds_t nr = 0;

  for (unsigned i = 0; i < run->nr_disks; i++) {
    struct backup_disk *d = &run->disks[i];
    if (d->error != NULL)
      continue;
    any |= take_events (d);
    if (fds != NULL)
      fds[nr++] = (struct pollfd){ .fd = control_client_fd (d->client), .events = POLLIN };
  }
  if (!any)
    poll (fds, nr, LOOK_MS);
  free (fds);
}

/* Somebody has stopped the worker (SIGSTOP), and may let it go on.  If not, the backup would wait
 * for ever: then it is killed.  Its job is taken away with the others that have failed. */
static void
look_if_stopped (struct backup_run *run, struct backup_disk *d, unsigned nr)
{
  siginfo_t info = { .si_pid = 0 };
  bool stopped = waitid (P_PID, (id_t)d->worker, &info, WSTOPPED | WNOHANG | WNOWAIT) == 0
                 && info.si_pid != 0;

  if (!stopped)
    d->stopped_ms = 0;
  else if (d->stopped_ms == 0)
    d->stopped_ms = clock_ms ();
  else if (clock_ms () - d->stopped_ms >= STOPPED_MS) {
    backup_fail (d, EXIT_ERROR, "its worker was stopped by a signal for %d s, so it was killed",
                 STOPPED_MS / 1000);
    backup_end_worker (run, d, nr, SIGKILL);
  }
}

/* Look at each worker.  The number of those that are neither ready nor at their end. */
static unsigned
look (struct backup_run *run, bool tell)
{
  unsigned waiting = 0;

  for (unsigned i = 0; i < run->nr_disks; i++) {
    struct backup_disk *d = &run->disks[i];
    CLEANUP_TEXT char *line = NULL;
    if (d->error != NULL || has_ended (run, d, i, 0)) {
      if (d->error == NULL)
        backup_fail (d, EXIT_ERROR, "the worker ended too early");
      continue;
    }
    look_if_stopped (run, d, i);
    if (d->error != NULL)
      continue;
    d->ready = is_ready (d, &line);
    waiting += d->error == NULL && !d->ready;
    if (tell && line != NULL && !d->ready)
      cmd_say ("%s", line);
  }
  return waiting;
}

int
backup_wait_ready (struct backup_run *run)
{
  uint64_t told = clock_ms ();

  for (;;) {
    bool tell = !run->no_progress && clock_ms () - told >= TELL_MS;
    if (tell)
      told = clock_ms ();
    if (look (run, tell) == 0)
      return 0;
    if (backup_signal != 0) {
      cmd_say ("cancelled: the guest goes on, and the earlier backups are as they were");
      return EXIT_CANCELLED;
    }
    if (run->max_duration_ms != 0 && clock_ms () - run->begun_ms >= run->max_duration_ms) {
      cmd_say ("not done within --max-duration: the guest goes on, and the earlier backups are as"
               " they were");
      return EXIT_NOT_CONVERGED;
    }
    wait_for_news (run);
  }
}
