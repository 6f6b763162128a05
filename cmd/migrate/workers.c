/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The worker processes of the disks.  See disks.h.
 */

#include "config.h"

#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/child.h"
#include "base/clock.h"
#include "base/text.h"
#include "cmd/control-query.h"
#include "cmd/migrate/disks.h"
#include "control/name.h"
#include "mirror/endpoint/seal.h"

#define END_MS 5000 /* for a worker to end when it is told to */
#define JOB_END_MS 10000
#define JOB_LOOK_MS 20

/* The name of /proc/self/exe would do as well, but then the process's name is "exe". */
const char *
worker_program (char *buf, size_t size)
{
  ssize_t n = readlink ("/proc/self/exe", buf, size - 1);

  if (n <= 0)
    return NULL;
  buf[n] = '\0';
  return buf;
}

static unsigned
pass_on (const char **argv, unsigned n, const char *option, const char *value)
{
  if (value == NULL)
    return n;
  argv[n] = option;
  argv[n + 1] = value;
  return n + 2;
}

static unsigned
pass_on_sync (const char **argv, unsigned n, const struct disk_option *o)
{
  if (!o->have_sync)
    return n;
  n = pass_on (argv, n, "--sync", sync_word (&o->sync));
  n = pass_on (argv, n, "--base", o->base);
  n = pass_on (argv, n, "--base-format", o->base_format);
  if (o->sync.trust_base)
    argv[n++] = "--trust-base";
  return n;
}

/* QEMU delays no write, so the other policies are for the other disks. */
static bool
is_for_qemu (const char *policy)
{
  return policy != NULL && (strcmp (policy, "none") == 0 || strcmp (policy, "fail") == 0);
}

unsigned
worker_words (const char *words[WORKER_WORDS], const struct disk *d,
              const struct migrate_options *o)
{
  unsigned n = 0;

  words[n++] = "nbdmirror";
  words[n++] = "mirror";
  words[n++] = d->control;
  words[n++] = d->dest;
  words[n++] = "--json";
  if (disk_has_left_over (d))
    words[n++] = "--resume";
  n = pass_on_sync (words, n, d->option);
  n = pass_on (words, n, "--bandwidth", o->bandwidth);
  n = pass_on (words, n, "--budget", o->budget);
  if (o->compress[0] != '\0')
    words[n++] = o->compress;
  n = pass_on (words, n, "--max-downtime", o->max_downtime);
  if (!control_is_of_qemu (d->control) || is_for_qemu (o->policy))
    n = pass_on (words, n, "--policy", o->policy);
  n = pass_on (words, n, "--connections", o->connections);
  n = pass_on (words, n, "--give-up-if-stalled", o->give_up_stalled);
  words[n] = NULL;
  return n;
}

struct new_worker {
  struct notes *notes;
  unsigned disk;
};

/* The guardian knows of the process before that does anything.  If we are killed now it never does.
 */
static int
note_worker (void *opaque, pid_t pid)
{
  const struct new_worker *w = opaque;

  notes_worker (w->notes, w->disk, pid);
  return 0;
}

static int
start_one (struct journal *journal, struct disk *d, const struct migrate_options *o,
           struct new_worker *w)
{
  char path[4096];
  const struct child_options own = { .path = worker_program (path, sizeof path),
                                     .own_group = true,
                                     .before = note_worker,
                                     .opaque = w };
  const char *argv[WORKER_WORDS];

  worker_words (argv, d, o);
  d->pid = child_start ((char *const *)argv, &own);
  if (d->pid == -1) {
    d->pid = 0;
    return journal_fail (journal, EXIT_ERROR, "%s: cannot start a worker: %m", d->control);
  }
  journal_event (journal, "worker",
                 json_pack ("{s:s, s:s, s:i, s:b, s:s, s:s?, s:s?, s:b}", "control", d->control,
                            "destination", d->dest, "pid", (int)d->pid, "resume",
                            disk_has_left_over (d), "sync", sync_word (&d->option->sync), "base",
                            d->option->base, "base-format", d->option->base_format, "trust-base",
                            d->option->sync.trust_base));
  return 0;
}

int
disks_start (struct disks *d, const struct migrate_options *o, struct notes *notes)
{
  for (unsigned i = 0; i < d->nr; i++) {
    struct new_worker w = { .notes = notes, .disk = i };

    if (d->disk[i].ours && start_one (d->journal, &d->disk[i], o, &w) == -1)
      return -1;
  }
  return 0;
}

/* Wait for at most MS. */
static void
reap (struct disk *d, int ms)
{
  if (d->pid > 0 && !d->ended)
    d->ended = child_ended (d->pid, ms, &d->wait_status);
}

/* Its own message, on our standard error, says more. */
static const char *
why_ended (int exit_status)
{
  switch (exit_status) {
  case EXIT_DEST_FAILED:
    return ": its destination failed, or is stalled";
  case EXIT_NOT_CONVERGED:
    return ": the disk does not converge";
  case EXIT_CANCELLED:
    return ": the mirror was cancelled";
  case EXIT_REFUSED:
    return ": the mirror was refused, and the worker's message says why";
  default:
    return "";
  }
}

int
worker_look (struct journal *journal, struct disk *d)
{
  reap (d, 0);
  if (d->pid <= 0 || !d->ended)
    return 0;
  int status = d->wait_status;
  if (WIFSIGNALED (status))
    return journal_fail (journal, EXIT_ERROR, "%s: its worker was killed by signal %d", d->control,
                         WTERMSIG (status));
  int code = WEXITSTATUS (status);
  return journal_fail (journal, code != 0 ? code : EXIT_ERROR,
                       "%s: its worker has ended with status %d%s", d->control, code,
                       why_ended (code));
}

void
disks_adopt (struct disks *d, const struct notes *notes)
{
  for (unsigned i = 0; i < d->nr; i++) {
    d->disk[i].pid = notes_read_worker (notes, i);
    d->disk[i].ours = d->disk[i].pid > 0;
    /* If it is no child of ours any more, the number may be another's by now. */
    reap (&d->disk[i], 0);
  }
}

/* Through the filter: drops what a worker that was killed left over. */
static void
drop_job (struct journal *journal, struct disk *d)
{
  struct control_call call = { .command = "block-job-cancel", .timeout_ms = QUERY_MS };
  char *error = NULL;

  if (d->client == NULL)
    d->client = control_client_connect (d->control, QUERY_MS, &error);
  if (d->client != NULL)
    control_client_call (d->client, &call, &error);
  if (error != NULL)
    journal_text (journal, "cancel", error);
  text_free (error);
}

static bool
has_exited (const struct disk *d, int status)
{
  return d->ended && WIFEXITED (d->wait_status) && WEXITSTATUS (d->wait_status) == status;
}

/* SIGINT cancels a worker's job, also of one that has not attached yet. */
static void
cancel_one (struct journal *journal, struct disk *d)
{
  static const int signals[] = { SIGINT, SIGKILL };

  for (unsigned i = 0; i < 2 && !d->ended; i++) {
    kill (d->pid, signals[i]);
    reap (d, END_MS);
  }
  if (!has_exited (d, EXIT_CANCELLED))
    drop_job (journal, d);
  if (!has_exited (d, EXIT_DONE)) /* not after a hand-over */
    journal_rolled_back (journal, "%s: the mirror was cancelled", d->control);
}

void
disks_cancel (struct disks *d)
{
  for (unsigned i = 0; i < d->nr; i++) {
    struct disk *disk = &d->disk[i];
    char *error = NULL;

    destination_seal_close (&disk->seal, false); /* it would keep the server from ending */
    if (!disk->ours || disk->pid <= 0)
      continue;
    cancel_one (d->journal, disk);
    int r = destination_give_up (disk->dest, &error);
    if (r == 0)
      journal_rolled_back (d->journal, "%s: given up", disk->dest);
    else if (r == -1)
      journal_text (d->journal, "give-up", error);
    text_free (error);
  }
}

void
disks_reap (struct disks *d)
{
  for (unsigned i = 0; i < d->nr; i++) {
    struct disk *disk = &d->disk[i];

    /* It waits for a while, for those who might have to finish the hand-over: nobody has to. */
    if (control_is_of_qemu (disk->control) && disk->pid > 0 && !disk->ended)
      kill (disk->pid, SIGTERM);
    reap (disk, END_MS);
    if (disk->pid > 0 && !disk->ended)
      cmd_warning ("%s: its worker, process %ld, has not ended yet", disk->control,
                   (long)disk->pid);
  }
}

/* ---- of an earlier try ---------------------------------------------------------------------- */

/* After a backup, for example, it is completed. */
static bool
job_is_over (const json_t *status)
{
  const char *state = status_text (status, "state");

  return state != NULL
         && (strcmp (state, "cancelled") == 0 || strcmp (state, "idle") == 0
             || strcmp (state, "failed") == 0
             || (strcmp (state, "completed") == 0 && !status_handed_over (status)));
}

void
disk_end_job (struct journal *journal, struct disk *d)
{
  struct control_call cancel = { .command = "block-job-cancel", .timeout_ms = QUERY_MS };
  uint64_t end = clock_ms () + JOB_END_MS;
  char *error = NULL;
  bool works = true;

  if (d->client == NULL)
    d->client = control_client_connect (d->control, QUERY_MS, &error);
  if (d->client != NULL && control_client_call (d->client, &cancel, &error) == 0)
    journal_rolled_back (journal, "%s: the mirror was cancelled", d->control);
  while (d->client != NULL && works && clock_ms () < end) {
    json_t *status = NULL;
    struct control_call look
        = { .command = "query-mirror", .timeout_ms = QUERY_MS, .ret = &status };

    text_free (error);
    error = NULL;
    works = control_client_call (d->client, &look, &error) == 0 && !job_is_over (status);
    json_decref (status);
    if (works)
      clock_sleep_ms (JOB_LOOK_MS);
  }
  text_free (error);
}
