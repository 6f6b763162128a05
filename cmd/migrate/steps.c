/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The steps of a migration up to the commit.  From PHASE_HOLD on the guest is stopped, so nothing
 * waits longer there than it must.
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

#include <inttypes.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "cmd/migrate/migrate.h"
#include "mirror/job/stall.h"

#define EVENT_MS 20         /* longest sleep while the guest is stopped */
#define ASK_MS 250          /* how often query-migrate is asked, beside the events */
#define DEST_WHOLE_MS 10000 /* from the source's "completed" to the destination's "paused" */
#define LOOK_MS 100         /* how often the disks are looked at, beside their events */
#define NOT_READY_MS 1000   /* the stopped guest waits at least so long for a disk to be ready */

/* Has the user, or the time, ended it?  -1 then. */
static int
check_interrupted (struct migrate *m)
{
  uint64_t took_ms = (clock_ns () - m->journal.start_ns) / NS_PER_MS;

  if (atomic_load (m->machines.signal) != 0)
    return journal_fail (&m->journal, EXIT_CANCELLED, "cancelled");
  if (m->options.timeout_ms != 0 && m->journal.phase <= PHASE_MEMORY
      && took_ms > m->options.timeout_ms)
    return journal_fail (&m->journal, EXIT_NOT_CONVERGED,
                         "not done within %" PRIu64 " ms (--timeout): %s", m->options.timeout_ms,
                         m->journal.phase == PHASE_MEMORY ? "the memory did not converge"
                                                          : "the disks are not ready");
  return 0;
}

/* Take in what D's control socket has told by itself: that is only a reason to look at it. */
static void
drop_events (struct disk *d)
{
  char *name, *error = NULL;
  json_t *data;

  while (d->client != NULL && control_client_next_event (d->client, 0, &name, &data, &error) == 1) {
    free (name);
    json_decref (data);
  }
  text_free (error); /* disks_look() finds that it is lost */
}

/* Wait for up to MS, or until a disk or a machine tells something. */
static void
wait_for_news (struct migrate *m, int ms)
{
  unsigned nr = m->disks.nr;
  struct pollfd *fds = calloc (nr + MACHINES_FDS, sizeof *fds);

  if (fds == NULL) {
    machines_wait (&m->machines, ms);
    return;
  }
  for (unsigned i = 0; i < nr; i++) {
    const struct disk *d = &m->disks.disk[i];
    fds[i] = (struct pollfd){ .fd = d->client != NULL ? control_client_fd (d->client) : -1,
                              .events = POLLIN };
  }
  machines_wait_with (&m->machines, fds, nr, ms);
  for (unsigned i = 0; i < nr; i++)
    drop_events (&m->disks.disk[i]);
  free (fds);
}

/* ---- mirror --------------------------------------------------------------------------------- */

int
step_mirror (struct migrate *m)
{
  if (disks_start (&m->disks, &m->options, m->notes) == -1)
    return -1;
  for (bool ready = false; !ready;) {
    if (check_interrupted (m) == -1 || disks_look (&m->disks, &ready) == -1)
      return -1;
    if (m->machines.dest.qmp == NULL || machine_is_lost (&m->machines.source))
      return journal_fail (&m->journal, EXIT_ERROR, "the %s QEMU has closed its monitor",
                           m->machines.dest.qmp == NULL ? "destination" : "source");
    progress_update (m);
    if (!ready)
      wait_for_news (m, LOOK_MS);
  }
  return 0;
}

/* ---- memory --------------------------------------------------------------------------------- */

static int
set_parameters (struct migrate *m, char **error)
{
  static const char *const keys[] = { "max-bandwidth", "downtime-limit", NULL };
  json_t *now = NULL, *wanted = json_object (), *old = json_object ();
  int r = -1;

  json_object_set_new (wanted, "downtime-limit",
                       json_integer ((json_int_t)m->options.max_downtime_ms));
  if (m->options.memory_bandwidth != 0)
    json_object_set_new (wanted, "max-bandwidth",
                         json_integer ((json_int_t)m->options.memory_bandwidth));
  if (machine_call (&m->machines.source, "query-migrate-parameters", NULL, &now, NULL, error)
      == 0) {
    for (size_t i = 0; keys[i] != NULL; i++)
      if (json_object_get (wanted, keys[i]) != NULL && json_object_get (now, keys[i]) != NULL)
        json_object_set (old, keys[i], json_object_get (now, keys[i]));
    r = machine_call (&m->machines.source, "migrate-set-parameters", json_incref (wanted), NULL,
                      NULL, error);
  }
  if (r == 0) {
    m->machines.source.old_params = json_incref (old);
    notes_settings (m->notes, NULL, old);
  }
  json_decref (now);
  json_decref (wanted);
  json_decref (old);
  return r;
}

/* What has become of the migration?  Events tell at once; asked from time to time, in case one was
 * lost. */
static int
look_at_migration (struct migrate *m, uint64_t *asked)
{
  uint64_t now = clock_ms ();

  if (now - *asked < ASK_MS && m->machines.source.qmp != NULL)
    return 0;
  *asked = now;
  char status[32];
  machine_migration (&m->machines.source, status);
  if (status[0] == '\0' && m->journal.phase == PHASE_SWITCH && m->machines.source.qmp == NULL)
    return 0; /* whether it has died matters now: step_switch() looks */
  if (status[0] == '\0')
    return journal_fail (&m->journal, EXIT_ERROR, "the source QEMU cannot be asked any more");
  strcpy (m->machines.source.migration, status);
  return 0;
}

static int
migration_failed (struct migrate *m)
{
  json_t *ret = NULL;
  char *error = NULL;

  machine_call (&m->machines.source, "query-migrate", NULL, &ret, NULL, &error);
  const char *desc = json_string_value (json_object_get (ret, "error-desc"));
  journal_fail (&m->journal, EXIT_ERROR, "QEMU's migration of the memory: %s%s%s",
                m->machines.source.migration, desc != NULL ? ": " : "", desc != NULL ? desc : "");
  text_free (error);
  json_decref (ret);
  return -1;
}

static bool
has_failed (const struct machine *vm)
{
  return strcmp (vm->migration, "failed") == 0 || strcmp (vm->migration, "cancelled") == 0
         || strcmp (vm->migration, "cancelling") == 0;
}

/* Somebody may have paused it while its disks were copied: it would be continued at the
 * destination. */
static int
check_still_runs (struct migrate *m)
{
  char status[32];

  machine_status (&m->machines.source, status);
  if (status[0] == '\0')
    return journal_fail (&m->journal, EXIT_ERROR, "the source QEMU cannot be asked any more");
  return strcmp (status, "running") == 0
             ? 0
             : journal_fail (&m->journal, EXIT_REFUSED,
                             "the source VM does not run any more, its state is '%s': it stays so, "
                             "and its memory was not moved",
                             status);
}

/* Until QEMU has refused it, this migration is ours. */
static int
send_migrate (struct migrate *m, char **error)
{
  bool refused;

  m->memory_begun = true;
  notes_memory_begun (m->notes, true);
  int r = machine_call (&m->machines.source, "migrate",
                        json_pack ("{s:s}", "uri", m->options.memory_uri), NULL, &refused, error);
  if (r == -1 && refused) {
    m->memory_begun = false;
    notes_memory_begun (m->notes, false);
  }
  return r;
}

static int
begin_memory (struct migrate *m)
{
  const struct coordinator_options opts = { .lease_ms = (unsigned)m->options.switch_ms,
                                            .timeout_ms = (unsigned)m->options.switch_ms,
                                            .guest_stopped = true };
  struct machine *source = &m->machines.source;
  char *error = NULL;

  /* Connections now: later they would cost the guest time. */
  m->coordinator = coordinator_new (m->options.controls, m->disks.nr, &opts, &error);
  if (m->coordinator == NULL
      || hook_run (&m->options.hooks, HOOK_BEFORE_HOLD, NULL, NULL, &error) == -1
      || set_parameters (m, &error) == -1)
    return journal_fail_with (&m->journal, EXIT_ERROR, error);
  finish_connect_seals (m);
  machine_events (source);
  source->migration[0] = '\0';
  source->memory_total = 0; /* of an earlier one */
  if (check_still_runs (m) == -1)
    return -1;
  return send_migrate (m, &error) == -1 ? journal_fail_with (&m->journal, EXIT_ERROR, error) : 0;
}

int
step_memory (struct migrate *m)
{
  const struct machine *source = &m->machines.source;

  if (begin_memory (m) == -1)
    return -1;
  uint64_t asked = 0, disks_asked = 0, looked = clock_ns (), before = looked;
  struct stall stall = { 0, 0 };
  while (strcmp (source->migration, "pre-switchover") != 0) {
    before = looked;
    looked = clock_ns ();
    if (check_interrupted (m) == -1 || look_at_migration (m, &asked) == -1)
      return -1;
    if (has_failed (source))
      return migration_failed (m);
    uint64_t stalled_ms
        = stall_look (&stall, (uint64_t)source->memory_sent, true, clock_ns ()) / NS_PER_MS;
    if (m->options.give_up_stalled_ms != 0 && stalled_ms >= m->options.give_up_stalled_ms)
      return journal_fail (&m->journal, EXIT_NOT_CONVERGED,
                           "no memory has been sent for %" PRIu64 " ms (--give-up-if-stalled)",
                           stalled_ms);
    if (strcmp (source->migration, "completed") == 0)
      return journal_fail (&m->journal, EXIT_ERROR,
                           "the source QEMU did not wait before the switch-over");
    if (m->machines.dest.qmp == NULL)
      return journal_fail (&m->journal, EXIT_ERROR, "the destination QEMU has closed its monitor");
    if (clock_ms () - disks_asked >= ASK_MS) {
      bool ready;
      disks_asked = clock_ms ();
      if (disks_look (&m->disks, &ready) == -1)
        return -1;
    }
    progress_update (m);
    if (strcmp (source->migration, "pre-switchover") != 0)
      machines_wait (&m->machines, EVENT_MS);
  }
  /* Nobody has listened to its events: it ran when we asked the last time but one. */
  if (source->brief)
    m->machines.source.stop_ns = before;
  return 0;
}

/* ---- hold ----------------------------------------------------------------------------------- */

static uint64_t
not_ready_ms (const struct migrate *m)
{
  uint64_t ms = 4 * m->options.max_downtime_ms;

  return ms > NOT_READY_MS ? ms : NOT_READY_MS;
}

/* "Ready" comes and goes with the guest's writes.  It is stopped now, so what is left can only
 * become less. */
int
step_hold (struct migrate *m)
{
  uint64_t end = clock_ms () + not_ready_ms (m);
  char *error = NULL;
  bool not_ready;

  while (coordinator_prepare (m->coordinator, &not_ready, &error) == -1) {
    journal_text (&m->journal, "not-prepared", error);
    if (!not_ready || clock_ms () > end)
      return journal_fail_with (&m->journal,
                                disks_degraded (&m->disks) ? EXIT_DEST_FAILED : EXIT_ERROR, error);
    text_free (error);
    error = NULL;
    if (check_interrupted (m) == -1)
      return -1;
    wait_for_news (m, EVENT_MS);
    if (has_failed (&m->machines.source))
      return migration_failed (m);
  }
  m->held = true;
  journal_event (&m->journal, "prepared",
                 json_pack ("{s:s}", "rollback-token", coordinator_token (m->coordinator)));
  return 0;
}

/* ---- switch --------------------------------------------------------------------------------- */

static int
check_lease (struct migrate *m)
{
  if (coordinator_decided (m->coordinator) == DECISION_UNDECIDED)
    return 0;
  return journal_fail (
      &m->journal, EXIT_ERROR,
      "a disk is held no longer: its worker or its server was lost, or the switch-over"
      " took longer than %" PRIu64 " ms (--switchover-timeout)",
      m->options.switch_ms);
}

/* The source says "completed", or has died: is the whole guest at the destination?  Only then it is
 * paused. */
static int
wait_for_dest (struct migrate *m)
{
  uint64_t end = clock_ms () + DEST_WHOLE_MS;
  char status[32];

  for (;;) {
    if (check_lease (m) == -1)
      return -1;
    machine_status (&m->machines.dest, status);
    if (strcmp (status, "paused") == 0 || strcmp (status, "running") == 0)
      break;
    if (status[0] == '\0')
      return journal_fail (&m->journal, EXIT_ERROR,
                           "the destination QEMU was lost before the hand-over");
    if (clock_ms () > end)
      return journal_fail (&m->journal, EXIT_ERROR, "the destination VM is '%s' and not paused",
                           status);
    machines_wait (&m->machines, 2);
  }
  return 0;
}

int
step_switch (struct migrate *m)
{
  char *error = NULL;
  uint64_t asked = clock_ms ();
  bool refused;

  m->machines.source.migration[0] = '\0';
  m->machines.source.brief = false; /* what happens here has to be known at once */
  if (machine_call (&m->machines.source, "migrate-continue",
                    json_pack ("{s:s}", "state", "pre-switchover"), NULL, &refused, &error)
          == -1
      && refused)
    return journal_fail_with (&m->journal, EXIT_ERROR, error);
  text_free (error);
  while (strcmp (m->machines.source.migration, "completed") != 0) {
    if (check_lease (m) == -1)
      return -1;
    if (has_failed (&m->machines.source))
      return migration_failed (m);
    /* It cannot resume the guest any more, so if all of it has arrived there is one way only:
     * forward. */
    if (m->machines.source.qmp == NULL && machines_wait_dead (&m->machines, &m->machines.source)) {
      journal_text (&m->journal, "source-died", "is the whole guest at the destination?");
      return wait_for_dest (m);
    }
    if (check_interrupted (m) == -1 || look_at_migration (m, &asked) == -1)
      return -1;
    if (strcmp (m->machines.source.migration, "completed") != 0)
      machines_wait (&m->machines, EVENT_MS);
  }
  return wait_for_dest (m);
}

/* ---- commit --------------------------------------------------------------------------------- */

int
step_commit (struct migrate *m)
{
  char *error = NULL;

  migrate_share_monitor (m);
  if (m->machines.dest.qmp == NULL || machine_events (&m->machines.dest) == -1)
    return journal_fail (&m->journal, EXIT_ERROR,
                         "the destination QEMU was lost before the hand-over");
  if (coordinator_commit (m->coordinator, &error) == -1)
    return journal_fail_with (&m->journal, EXIT_ERROR, error);
  m->committed = true;
  strcpy (m->result.token, coordinator_token (m->coordinator));
  notes_committed (m->notes, m->result.token);
  journal_event (&m->journal, "committed", json_pack ("{s:s}", "rollback-token", m->result.token));
  return 0;
}
