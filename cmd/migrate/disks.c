/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See disks.h.
 */

#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "cmd/control-query.h"
#include "cmd/migrate/disks.h"
#include "control/name.h"
#include "mirror/endpoint/same-place.h"
#include "mirror/endpoint/uri.h"

#define SILENT_MS 20000 /* a worker tells four times a second how it stands */

int
disks_init (struct disks *d, const struct migrate_options *o, struct journal *journal)
{
  *d = (struct disks){ .disk = calloc (o->nr_disks, sizeof *d->disk), .journal = journal };
  if (d->disk == NULL)
    return -1;
  d->nr = o->nr_disks;
  for (unsigned i = 0; i < d->nr; i++) {
    d->disk[i].option = &o->disks[i];
    d->disk[i].control = o->disks[i].control;
    d->disk[i].dest = o->disks[i].dest;
  }
  return 0;
}

void
disks_free (struct disks *d)
{
  for (unsigned i = 0; i < d->nr; i++) {
    control_client_free (d->disk[i].client);
    json_decref (d->disk[i].status);
    destination_seal_close (&d->disk[i].seal, false);
  }
  free (d->disk);
}

/* A disk that QEMU has open by itself has a control socket only while it is mirrored. */
static bool
has_no_worker (const struct disk *d)
{
  return control_is_of_qemu (d->control) && control_nobody_listens (d->control);
}

int
disks_connect (struct disks *d)
{
  for (unsigned i = 0; i < d->nr; i++) {
    char *error = NULL;

    if (has_no_worker (&d->disk[i]))
      continue;
    d->disk[i].client = control_client_connect (d->disk[i].control, QUERY_MS, &error);
    if (d->disk[i].client == NULL)
      return journal_fail_with (d->journal, EXIT_ERROR, error);
  }
  return 0;
}

static int
ask (struct disk *d, char **error)
{
  json_t *status = NULL;
  struct control_call call = { .command = "query-mirror", .timeout_ms = QUERY_MS, .ret = &status };

  if (d->client == NULL || control_client_call (d->client, &call, error) == -1)
    return -1;
  json_decref (d->status);
  d->status = status;
  return 0;
}

/* Ask for D's status.  A lost connection is made anew, once. */
static int
look (struct journal *journal, struct disk *d)
{
  char *error = NULL;

  if (d->client == NULL && has_no_worker (d)) {
    json_decref (d->status);
    d->status = json_pack ("{s:s}", "state", "idle");
    return 0;
  }
  for (int try = 0; try < 2; try++) {
    text_free (error);
    error = NULL;
    if (d->client == NULL)
      d->client = control_client_connect (d->control, QUERY_MS, &error);
    if (ask (d, &error) == 0)
      return 0;
    control_client_free (d->client);
    d->client = NULL;
  }
  return journal_fail_with (journal, EXIT_ERROR, error);
}

static bool
is_one_of (const char *state, const char *const list[])
{
  for (size_t i = 0; list[i] != NULL; i++)
    if (strcmp (state, list[i]) == 0)
      return true;
  return false;
}

static const char *
state_of (const struct disk *d)
{
  const char *state = status_text (d->status, "state");

  return state != NULL ? state : "unknown";
}

bool
disk_has_left_over (const struct disk *d)
{
  const char *state = state_of (d);

  return strcmp (state, "detached") == 0
         || (strcmp (state, "failed") == 0 && status_has_number (d->status, "dirty-bytes"));
}

/* A job is at work that is not ours.  An earlier try that was killed may have started it, with
 * another destination: then the guest would be started on a disk that nobody filled.  Until it has
 * begun it may not tell. */
static int
check_target (struct journal *journal, const struct disk *d)
{
  const char *target = status_text (d->status, "target");

  if (target == NULL || same_place (target, d->dest))
    return 0;
  return journal_fail (journal, EXIT_REFUSED,
                       "%s: a job is at work that mirrors it to %s, not to %s: 'nbdmirror"
                       " cancel' ends it",
                       d->control, target, d->dest);
}

static int
check_running (struct journal *journal, const struct disk *d)
{
  const char *sync = status_text (d->status, "sync");

  if (check_target (journal, d) == -1)
    return -1;
  if (d->option->have_sync && !d->option->sync.automatic && sync != NULL
      && strcmp (sync, sync_name (d->option->sync.mode)) != 0)
    cmd_warning ("%s: a job is at work already, with --sync %s: it is used as it is", d->control,
                 sync);
  return 0;
}

/* The base of a job that we begin, if it is a file. */
static int
check_base (struct journal *journal, const struct disk *d)
{
  const char *base = d->option->base;

  if (base == NULL || uri_kind (base) != URI_NONE || access (base, R_OK) == 0)
    return 0;
  return journal_fail (journal, EXIT_ERROR, "%s: base image %s: %s", d->control, base,
                       strerror (errno));
}

static int
check_one (struct journal *journal, struct disk *d, bool resume)
{
  static const char *const running[]
      = { "copying", "ready", "throttled", "synchronous", "degraded", NULL };
  static const char *const none[] = { "idle", "cancelled", "failed", "completed", NULL };

  if (look (journal, d) == -1)
    return -1;
  const char *state = state_of (d);
  d->ours = !is_one_of (state, running);
  if (!d->ours)
    return check_running (journal, d);
  if (status_handed_over (d->status))
    return journal_fail (journal, EXIT_REFUSED,
                         "%s: it was handed over already: roll it back first, if the guest"
                         " really is here",
                         d->control);
  if (check_base (journal, d) == -1)
    return -1;
  if (disk_has_left_over (d))
    return resume ? 0
                  : journal_fail (journal, EXIT_REFUSED,
                                  "%s: a job is left over: --resume goes on with it, 'nbdmirror"
                                  " cancel' drops it",
                                  d->control);
  if (!is_one_of (state, none))
    return journal_fail (journal, EXIT_REFUSED, "%s: its job is %s", d->control, state);
  return 0;
}

int
disks_check (struct disks *d, bool resume)
{
  for (unsigned i = 0; i < d->nr; i++)
    if (check_one (d->journal, &d->disk[i], resume) == -1)
      return -1;
  return 0;
}

/* Was our worker stopped by a signal? */
static bool
is_stopped (const struct disk *d)
{
  siginfo_t info = { .si_pid = 0 };

  return d->pid > 0 && waitid (P_PID, (id_t)d->pid, &info, WSTOPPED | WNOHANG | WNOWAIT) == 0
         && info.si_pid != 0;
}

/* A worker that is stopped, or hangs, says nothing: nobody else would ever end the wait for it.
 * (One whose destination is lost says so, again and again.)  One that proves its destination first
 * says nothing either, maybe for hours: until our worker has said something, it has to be stopped
 * as well. */
static int
check_silence (struct journal *journal, struct disk *d)
{
  double told = status_number (d->status, "total-s", -1);
  uint64_t now = clock_ms ();
  bool first = d->heard_ms == 0, moved = told != d->told_s;

  d->has_told = d->has_told || (!first && moved);
  if (first || moved || (d->ours && !d->has_told && !is_stopped (d))) {
    d->told_s = told;
    d->heard_ms = now;
  }
  if (now - d->heard_ms <= SILENT_MS)
    return 0;
  return journal_fail (journal, EXIT_ERROR,
                       "%s: its worker has said nothing for %d s: is it stopped?", d->control,
                       SILENT_MS / 1000);
}

/* D is ready: begin its verification.  "Ready" comes and goes, so a refusal is no failure. */
static int
begin_verification (struct journal *journal, struct disk *d)
{
  char *error = NULL, *class_ = NULL;
  struct control_call call
      = { .command = "mirror-verify", .timeout_ms = QUERY_MS, .class_ = &class_ };
  int r = control_client_call (d->client, &call, &error);
  bool later = r == -1 && class_ != NULL && strcmp (class_, "NotReady") == 0;

  text_free (class_);
  if (r == 0) {
    d->verifying = true;
    d->mismatches = status_number (d->status, "mismatches", 0);
  } else if (!later)
    return journal_fail_with (journal, EXIT_ERROR, error);
  text_free (error);
  return 0;
}

/* How is the verification of D, which was begun?  *DONE: nothing differs. */
static int
look_at_verification (struct journal *journal, const struct disk *d, bool *done)
{
  const char *state = status_text (d->status, "verify");
  const char *why = status_text (d->status, "verify-error");
  double found = status_number (d->status, "mismatches", 0) - d->mismatches;

  if (found > 0)
    return journal_fail (
        journal, EXIT_DIFFERENT, "%s: its copy differs in %.0f block%s, one of them at offset %.0f",
        d->control, found, found == 1 ? "" : "s", status_number (d->status, "mismatch-offset", 0));
  if (state != NULL && strcmp (state, "failed") == 0)
    return journal_fail (journal, EXIT_ERROR, "%s: its copy could not be verified: %s", d->control,
                         why != NULL ? why : "no reason was given");
  *done = state != NULL && strcmp (state, "done") == 0;
  return 0;
}

/* The same for a disk that is to be verified.  *READY becomes false while it is not. */
static int
verify (struct journal *journal, struct disk *d, bool *ready)
{
  bool done = false;

  if (d->verifying) {
    if (look_at_verification (journal, d, &done) == -1)
      return -1;
  } else if (strcmp (state_of (d), "ready") == 0 && begin_verification (journal, d) == -1)
    return -1;
  *ready = *ready && done;
  return 0;
}

int
disks_look (struct disks *d, bool *ready)
{
  static const char *const over[] = { "failed", "cancelled", "completed", "detached", NULL };

  *ready = true;
  for (unsigned i = 0; i < d->nr; i++) {
    struct disk *disk = &d->disk[i];

    if (worker_look (d->journal, disk) == -1 || look (d->journal, disk) == -1
        || check_silence (d->journal, disk) == -1)
      return -1;
    const char *state = state_of (disk);
    /* Our worker may not have attached yet: then this is still the state of the job before. */
    if (!disk->ours && check_target (d->journal, disk) == -1)
      return -1;
    if (!disk->ours && is_one_of (state, over))
      return journal_fail (d->journal, EXIT_ERROR, "%s: its job is %s", disk->control, state);
    if (strcmp (state, "ready") != 0)
      *ready = false;
    if (disk->option->verify && verify (d->journal, disk, ready) == -1)
      return -1;
  }
  return 0;
}

void
disks_refresh (struct disks *d)
{
  for (unsigned i = 0; i < d->nr; i++) {
    char *error = NULL;

    ask (&d->disk[i], &error); /* the last one that was told will do */
    text_free (error);
  }
}

bool
disks_degraded (struct disks *d)
{
  disks_refresh (d);
  for (unsigned i = 0; i < d->nr; i++)
    if (strcmp (state_of (&d->disk[i]), "degraded") == 0)
      return true;
  return false;
}
