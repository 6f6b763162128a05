/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup: all disks at one instant.  The coordinator of a hand-off holds them, has the rest copied,
 * and lets them go (coordinator.h, `release`); the checkpoints have the same instant.  The user's
 * commands run before and after.  Whatever happens, the guest goes on.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "cmd/backup/backup.h"
#include "cmd/control-query.h"
#include "mirror/handoff/coordinator.h"

#define TRIES 50
#define AGAIN_MS 100
#define LOST_MS 1000
#define LOOK_MS 50

/* The disks that take part. */
struct taking_part {
  struct backup_disk **disks;
  char **controls;
  bool *checkpointed;
  unsigned nr;
};

static bool
collect (struct backup_run *run, struct taking_part *t)
{
  t->disks = calloc (run->nr_disks, sizeof *t->disks);
  t->controls = calloc (run->nr_disks, sizeof *t->controls);
  t->checkpointed = calloc (run->nr_disks, sizeof *t->checkpointed);
  t->nr = 0;
  for (unsigned i = 0; t->disks && t->controls && t->checkpointed && i < run->nr_disks; i++) {
    struct backup_disk *d = &run->disks[i];
    if (d->error != NULL || !d->ready)
      continue;
    t->disks[t->nr] = d;
    t->controls[t->nr] = d->control;
    t->checkpointed[t->nr++] = d->has_state;
  }
  return t->nr > 0;
}

static void
forget (struct taking_part *t)
{
  free (t->disks);
  free (t->controls);
  free (t->checkpointed);
}

/* It failed for all of them. */
static int
fail_all (const struct taking_part *t, int status, const char *why)
{
  for (unsigned i = 0; i < t->nr; i++)
    backup_fail (t->disks[i], status, "%s", why);
  return status;
}

static bool
has_lost_file (const struct backup_disk *d)
{
  CLEANUP_TEXT char *error = NULL;
  json_t *status = NULL;
  const struct control_call call
      = { .command = "query-mirror", .timeout_ms = QUERY_MS, .ret = &status };

  if (control_client_call (d->client, &call, &error) == -1)
    return false;
  const char *state = status_text (status, "state");
  bool lost = state != NULL && (strcmp (state, "degraded") == 0 || strcmp (state, "failed") == 0);
  json_decref (status);
  return lost;
}

/* The exit status.  Where the disks could not be held, a worker that was ready may have lost its
 * file just then, in a full repository for instance; it tells its server a moment later. */
static int
status_of_failure (const struct taking_part *t, bool not_held)
{
  for (unsigned ms = 0; not_held && ms < LOST_MS && backup_signal == 0; ms += LOOK_MS) {
    for (unsigned i = 0; i < t->nr; i++)
      if (has_lost_file (t->disks[i]))
        return EXIT_DEST_FAILED;
    clock_sleep_ms (LOOK_MS);
  }
  return backup_signal != 0 ? EXIT_CANCELLED : EXIT_NOT_CONVERGED;
}

static bool
time_is_left (const struct backup_run *run)
{
  return backup_signal == 0
         && (run->max_duration_ms == 0 || clock_ms () - run->begun_ms < run->max_duration_ms);
}

/* Hold, and commit.  A guest may have written much just now: then it is tried again. */
static int
hold (const struct backup_run *run, struct coordinator *c, char **error)
{
  for (unsigned i = 0;; i++) {
    bool not_ready = false;
    CLEANUP_TEXT char *why = NULL;
    if (coordinator_prepare (c, &not_ready, &why) == 0 && coordinator_commit (c, &why) == 0)
      return 0;
    if (i >= TRIES || !not_ready || !time_is_left (run))
      return text_error (error, "%s", why);
    clock_sleep_ms (AGAIN_MS);
  }
}

/* The copies stand at one instant.  What each disk's filter says of it: for how long its guest was
 * held, and that it was held to the end. */
static void
take_results (const struct taking_part *t, struct coordinator *c)
{
  struct coordinator_result result;
  CLEANUP_TEXT char *why = NULL;
  CLEANUP_TEXT char *other = NULL;

  if (coordinator_result_init (&result, t->nr) == -1) {
    fail_all (t, EXIT_ERROR, "out of memory");
    return;
  }
  coordinator_finalize (c, &result, &why);
  for (unsigned i = 0; i < t->nr; i++) {
    t->disks[i]->pause_ms = result.downtime_ms[i];
    if (coordinator_disk_fault (c, i) != NULL)
      backup_fail (t->disks[i], EXIT_ERROR, "%s", coordinator_disk_fault (c, i));
  }
  coordinator_result_free (&result);
  /* Without a checkpoint the backup is good, and the next one is full. */
  if (coordinator_checkpoint_finish (c, &other) == -1)
    cmd_warning ("a checkpoint was not added, so the next backup is full: %s", other);
  for (unsigned i = 0; i < t->nr; i++)
    strcpy (t->disks[i]->checkpoint_uuid, coordinator_checkpoint_uuid (c, i));
}

static void
note_hook (struct backup_run *run, const char *event, const char *command, const char *error)
{
  struct manifest_hook *h = manifest_add_hook (&run->manifest);

  if (h == NULL)
    return;
  h->event = text_copy (event);
  h->command = text_copy (command);
  h->error = error != NULL ? text_copy (error) : NULL;
  if (error != NULL)
    cmd_warning ("%s", error);
}

/* Freeze the guest, if the user says how.  *THAW then has to be ended.  Without a way to thaw it
 * nothing is frozen. */
static void
freeze (struct backup_run *run, struct backup_thaw **thaw)
{
  CLEANUP_TEXT char *error = NULL;

  *thaw = NULL;
  if (run->after_release != NULL && (*thaw = backup_thaw_start (run, &error)) == NULL) {
    note_hook (run, "after-release", run->after_release, error);
    return;
  }
  if (run->before_hold == NULL)
    return;
  run->frozen = backup_hook (run, "before-hold", run->before_hold, *thaw, &error) == 0;
  note_hook (run, "before-hold", run->before_hold, error);
}

static void
thaw_now (struct backup_run *run, struct backup_thaw *thaw)
{
  CLEANUP_TEXT char *error = NULL;

  if (thaw == NULL)
    return;
  if (backup_thaw_end (run, thaw, &error) == -1)
    run->frozen = false; /* for all we know it was thawed too early */
  note_hook (run, "after-release", run->after_release, error);
}

int
backup_instant (struct backup_run *run)
{
  CLEANUP_TEXT char *error = NULL;
  struct backup_thaw *thaw;
  struct taking_part t;
  int status = EXIT_DONE;

  if (!collect (run, &t)) {
    forget (&t);
    return EXIT_DONE; /* each disk has its own reason */
  }
  const struct coordinator_options opts
      = { .release = true, .checkpoint = run->checkpoint, .checkpointed = t.checkpointed };
  struct coordinator *c = coordinator_new (t.controls, t.nr, &opts, &error);
  if (c == NULL)
    status = fail_all (&t, EXIT_ERROR, error);
  else {
    freeze (run, &thaw);
    bool refused = run->require_frozen && !run->frozen;
    int r = refused
                ? text_error (&error, "the guest was not frozen, and --require-frozen was given")
                : hold (run, c, &error);
    bool held = r == 0;
    if (held)
      take_results (&t, c);
    thaw_now (run, thaw);
    if (held && run->require_frozen && !run->frozen)
      r = text_error (&error, "the guest may have been thawed too early, and --require-frozen was"
                              " given");
    if (r == -1)
      status = fail_all (&t, status_of_failure (&t, !held && !refused), error);
    coordinator_free (c);
  }
  forget (&t);
  return status;
}
