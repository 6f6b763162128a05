/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The steps of a migration from the memory on.  Between PHASE_HOLD and PHASE_START the guest is
 * stopped, so nothing there waits longer than it must.
 *
 *   source QEMU            disks                       destination QEMU
 *   active                 mirrored                    inmigrate
 *   pre-switchover (STOP)  hold, drain, flush          inmigrate
 *   device                 prepared (on the lease)     inmigrate
 *   completed              prepared                    paused, whole
 *   postmigrate            committed: one word         paused
 *   postmigrate            fenced, sealed              cont: running
 */

#include "config.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/migrate/migrate.h"
#include "mirror/endpoint/seal.h"

#define EVENT_MS 20         /* longest sleep while the guest is stopped */
#define ASK_MS 250          /* how often query-migrate is asked, beside the events */
#define DEST_WHOLE_MS 10000 /* from the source's "completed" to the destination's "paused" */
#define START_MS 20000      /* for the destination to run */
#define CONT_TRIES 3
#define NOT_READY_MS 1000 /* the stopped guest waits at least so long for a disk to be ready */

/* ---- memory --------------------------------------------------------------------------------- */

static int
set_parameters (struct migrate *m, char **error)
{
  static const char *const keys[] = { "max-bandwidth", "downtime-limit", NULL };
  json_t *now = NULL, *wanted = json_object (), *old = json_object ();
  size_t i;
  int r = -1;

  json_object_set_new (wanted, "downtime-limit", json_integer ((json_int_t)m->o.max_downtime_ms));
  if (m->o.memory_bandwidth != 0)
    json_object_set_new (wanted, "max-bandwidth", json_integer ((json_int_t)m->o.memory_bandwidth));
  if (vm_call (&m->source, "query-migrate-parameters", NULL, &now, NULL, error) == 0) {
    for (i = 0; keys[i] != NULL; i++)
      if (json_object_get (wanted, keys[i]) != NULL && json_object_get (now, keys[i]) != NULL)
        json_object_set (old, keys[i], json_object_get (now, keys[i]));
    r = vm_call (&m->source, "migrate-set-parameters", json_incref (wanted), NULL, NULL, error);
  }
  if (r == 0) {
    m->source.old_params = json_incref (old);
    guard_note (m);
  }
  json_decref (now);
  json_decref (wanted);
  json_decref (old);
  return r;
}

/* What has become of the migration?  Events tell at once; asked from time to time, in case one was
 * lost. */
static int
look_at_migration (struct migrate *m, double *asked)
{
  char status[32];
  double now = migrate_now ();

  if (now - *asked < ASK_MS && m->source.qmp != NULL)
    return 0;
  *asked = now;
  vm_migration (&m->source, status);
  if (status[0] == '\0' && m->phase == PHASE_SWITCH && m->source.qmp == NULL)
    return 0; /* whether it has died matters now: step_switch() looks */
  if (status[0] == '\0')
    return migrate_fail (m, EXIT_ERROR, "the source QEMU cannot be asked any more");
  strcpy (m->source.migration, status);
  return 0;
}

static int
migration_failed (struct migrate *m)
{
  json_t *ret = NULL;
  char *error = NULL;
  const char *desc = NULL;

  if (vm_call (&m->source, "query-migrate", NULL, &ret, NULL, &error) == 0)
    desc = json_string_value (json_object_get (ret, "error-desc"));
  migrate_fail (m, EXIT_ERROR, "QEMU's migration of the memory: %s%s%s", m->source.migration,
                desc != NULL ? ": " : "", desc != NULL ? desc : "");
  free (error);
  json_decref (ret);
  return -1;
}

static bool
has_failed (const struct vm *vm)
{
  return strcmp (vm->migration, "failed") == 0 || strcmp (vm->migration, "cancelled") == 0
         || strcmp (vm->migration, "cancelling") == 0;
}

int
step_memory (struct migrate *m)
{
  struct coordinator_options opts = { .lease_ms = (unsigned)m->o.switch_ms,
                                      .timeout_ms = (unsigned)m->o.switch_ms,
                                      .guest_stopped = true };
  char *error = NULL;
  double asked = 0, disks_asked = 0;
  bool ready;

  /* Connections now: later they would cost the guest time. */
  m->coordinator = coordinator_new (m->controls, m->nr, &opts, &error);
  if (m->coordinator == NULL || hook_run (&m->hooks, HOOK_BEFORE_HOLD, NULL, NULL, &error) == -1
      || set_parameters (m, &error) == -1)
    return migrate_fail_with (m, EXIT_ERROR, error);
  vm_events (&m->source);
  m->source.migration[0] = '\0';
  m->source.memory_total = 0; /* of an earlier one */
  if (vm_call (&m->source, "migrate", json_pack ("{s:s}", "uri", m->o.memory_uri), NULL, NULL,
               &error)
      == -1)
    return migrate_fail_with (m, EXIT_ERROR, error);
  asked = migrate_now ();
  while (strcmp (m->source.migration, "pre-switchover") != 0) {
    if (migrate_interrupted (m) == -1 || look_at_migration (m, &asked) == -1)
      return -1;
    if (has_failed (&m->source))
      return migration_failed (m);
    if (strcmp (m->source.migration, "completed") == 0)
      return migrate_fail (m, EXIT_ERROR, "the source QEMU did not wait before the switch-over");
    if (m->dest.qmp == NULL)
      return migrate_fail (m, EXIT_ERROR, "the destination QEMU has closed its monitor");
    if (migrate_now () - disks_asked >= ASK_MS) {
      disks_asked = migrate_now ();
      if (disks_look (m, &ready) == -1)
        return -1;
    }
    log_progress (m);
    migrate_wait (m, EVENT_MS);
  }
  return 0;
}

/* ---- hold ----------------------------------------------------------------------------------- */

static double
not_ready_ms (const struct migrate *m)
{
  double ms = 4.0 * (double)m->o.max_downtime_ms;

  return ms > NOT_READY_MS ? ms : NOT_READY_MS;
}

/* "Ready" comes and goes with the guest's writes.  It is stopped now, so what is left can only
 * become less. */
int
step_hold (struct migrate *m)
{
  double end = migrate_now () + not_ready_ms (m);
  char *error = NULL;
  bool not_ready;

  while (coordinator_prepare (m->coordinator, &not_ready, &error) == -1) {
    log_text (m, "not-prepared", error != NULL ? error : "out of memory");
    if (!not_ready || migrate_now () > end)
      return migrate_fail_with (m, disks_degraded (m) ? EXIT_DEST_FAILED : EXIT_ERROR, error);
    free (error);
    error = NULL;
    if (migrate_interrupted (m) == -1)
      return -1;
    migrate_wait (m, EVENT_MS);
    if (has_failed (&m->source))
      return migration_failed (m);
  }
  m->held = true;
  log_event (m, "prepared",
             json_pack ("{s:s}", "rollback-token", coordinator_token (m->coordinator)));
  return 0;
}

/* ---- switch --------------------------------------------------------------------------------- */

static int
check_lease (struct migrate *m)
{
  if (coordinator_decided (m->coordinator) == DECISION_UNDECIDED)
    return 0;
  return migrate_fail (
      m, EXIT_ERROR,
      "a disk is held no longer: its worker or its server was lost, or the switch-over"
      " took longer than %llu ms (--switchover-timeout)",
      (unsigned long long)m->o.switch_ms);
}

/* The source says "completed", or has died: is the whole guest at the destination?  Only then it is
 * paused. */
static int
wait_for_dest (struct migrate *m)
{
  double end = migrate_now () + DEST_WHOLE_MS;
  char status[32];

  for (;;) {
    if (check_lease (m) == -1)
      return -1;
    vm_status (&m->dest, status);
    if (strcmp (status, "paused") == 0 || strcmp (status, "running") == 0)
      break;
    if (status[0] == '\0')
      return migrate_fail (m, EXIT_ERROR, "the destination QEMU was lost before the hand-over");
    if (migrate_now () > end)
      return migrate_fail (m, EXIT_ERROR, "the destination VM is '%s' and not paused", status);
    migrate_wait (m, 2);
  }
  return 0;
}

int
step_switch (struct migrate *m)
{
  char *error = NULL;
  double asked = migrate_now ();
  bool refused;

  m->source.migration[0] = '\0';
  if (vm_call (&m->source, "migrate-continue", json_pack ("{s:s}", "state", "pre-switchover"), NULL,
               &refused, &error)
          == -1
      && refused)
    return migrate_fail_with (m, EXIT_ERROR, error);
  free (error);
  while (strcmp (m->source.migration, "completed") != 0) {
    if (check_lease (m) == -1)
      return -1;
    if (has_failed (&m->source))
      return migration_failed (m);
    /* It cannot resume the guest any more, so if all of it has arrived there is one way only:
     * forward. */
    if (m->source.qmp == NULL && vm_wait_dead (&m->source)) {
      log_text (m, "source-died", "is the whole guest at the destination?");
      return wait_for_dest (m);
    }
    if (migrate_interrupted (m) == -1 || look_at_migration (m, &asked) == -1)
      return -1;
    if (strcmp (m->source.migration, "completed") != 0)
      migrate_wait (m, EVENT_MS);
  }
  return wait_for_dest (m);
}

/* ---- commit --------------------------------------------------------------------------------- */

int
step_commit (struct migrate *m)
{
  char *error = NULL;

  if (m->dest.qmp == NULL || vm_events (&m->dest) == -1)
    return migrate_fail (m, EXIT_ERROR, "the destination QEMU was lost before the hand-over");
  if (coordinator_commit (m->coordinator, &error) == -1)
    return migrate_fail_with (m, EXIT_ERROR, error);
  m->committed = true;
  strcpy (m->result.token, coordinator_token (m->coordinator));
  log_event (m, "committed", json_pack ("{s:s}", "rollback-token", m->result.token));
  return 0;
}

/* After the commit nothing of this can change what is right; so it is done at the same time: the
 * destinations are sealed, and the fences made durable while the destination starts already. */

struct seal {
  pthread_t thread;
  bool started;
  const char *dest;
  int r;
  char *error;
};

struct after_commit {
  struct migrate *m;
  pthread_t thread;
  bool started;
  char *error; /* of coordinator_finalize(), or NULL */
};

static void *
seal_one (void *opaque)
{
  struct seal *s = opaque;

  s->r = destination_seal (s->dest, &s->error);
  return NULL;
}

static void *
finalize (void *opaque)
{
  struct after_commit *a = opaque;

  coordinator_finalize (a->m->coordinator, &a->m->result, &a->error);
  return NULL;
}

/* A destination that cannot be reached now, between the commit and the start, has died with the
 * guest's disk: -1 with m->reason. */
static int
seal_all (struct migrate *m)
{
  struct seal *seals = calloc (m->nr, sizeof *seals);
  unsigned i;
  int r = 0;

  for (i = 0; i < m->nr && seals != NULL; i++) {
    seals[i].dest = m->disks[i].dest;
    seals[i].started = pthread_create (&seals[i].thread, NULL, seal_one, &seals[i]) == 0;
    if (!seals[i].started)
      seal_one (&seals[i]);
  }
  for (i = 0; i < m->nr && seals != NULL; i++) {
    if (seals[i].started)
      pthread_join (seals[i].thread, NULL);
    log_event (m, "sealed",
               json_pack ("{s:s, s:i, s:s*}", "destination", seals[i].dest, "result", seals[i].r,
                          "error", seals[i].error));
    if (seals[i].r == -1)
      r = migrate_fail_with (m, EXIT_DEST_FAILED, seals[i].error);
    else
      free (seals[i].error);
  }
  free (seals);
  return r;
}

int
migrate_after_commit (struct migrate *m, int (*start) (struct migrate *m))
{
  struct after_commit a = { .m = m };
  int r = -1;

  a.started = pthread_create (&a.thread, NULL, finalize, &a) == 0;
  if (!a.started)
    finalize (&a);
  if (seal_all (m) == 0) {
    log_phase (m, PHASE_START);
    r = start (m);
  }
  if (a.started)
    pthread_join (a.thread, NULL);
  if (a.error != NULL) {
    cmd_warning ("%s", a.error);
    log_text (m, "not-confirmed", a.error);
  }
  free (a.error);
  return r;
}

/* ---- start ---------------------------------------------------------------------------------- */

/* `cont` until the guest runs.  -1: it does not, and *NEVER_RAN tells whether that is certain. */
static int
start_dest (struct migrate *m, bool *never_ran, char **error)
{
  bool refused;
  int try;

  *never_ran = true;
  for (try = 0; try < CONT_TRIES; try++) {
    free (*error);
    *error = NULL;
    if (try > 0)
      migrate_wait (m, 100);
    if (m->dest.qmp != NULL && vm_events (&m->dest) == 0) {
      m->cont_sent = true;
      guard_note (m);
      if (vm_call (&m->dest, "cont", NULL, NULL, &refused, error) == 0)
        return 0;
      if (refused)
        continue;
    }
    /* Lost.  QEMU says RESUME before a CPU runs, and what it said before it died can still be read.
     */
    if (m->dest.resume_ms > 0)
      break;
    if (m->dest.qmp == NULL && vm_wait_dead (&m->dest)) {
      if (*error == NULL)
        *error = strdup ("the destination QEMU has died");
      return -1;
    }
    if (m->dest.qmp == NULL) {
      free (*error);
      *error = NULL;
      if (vm_connect (&m->dest, error) == -1)
        break;
    }
  }
  *never_ran = m->dest.resume_ms == 0 && (!m->cont_sent || m->dest.qmp != NULL);
  return -1;
}

int
step_start (struct migrate *m)
{
  double end;
  bool never_ran;
  char status[32];
  char *error = NULL;

  m->dest.resume_ms = 0;
  if (start_dest (m, &never_ran, &error) == -1) {
    migrate_fail_with (m, EXIT_ERROR, error);
    m->cont_sent = !never_ran;
    return -1;
  }
  end = migrate_now () + START_MS;
  do {
    migrate_wait (m, 1);
    vm_status (&m->dest, status);
    if (strcmp (status, "running") == 0) {
      if (m->dest.resume_ms == 0)
        m->dest.resume_ms = migrate_now ();
      return 0;
    }
  } while (migrate_now () < end && (status[0] != '\0' || !vm_is_dead (&m->dest)));
  return migrate_fail (m, EXIT_ERROR, "the destination VM was told to run, and is '%s'",
                       status[0] != '\0' ? status : "gone");
}
