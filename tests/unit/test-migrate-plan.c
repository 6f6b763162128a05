/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proves that what --recover decides never leads to two running guests, for everything that can be
 * seen of the disks and of both machines, and that it leads to one wherever that is safe.
 */

#include "config.h"

#include <string.h>

#include "cmd/migrate/plan.h"
#include "tests/unit/unit.h"

static const enum handoff_found disks[]
    = { HANDOFF_FOUND_NONE, HANDOFF_FOUND_UNDECIDED, HANDOFF_FOUND_COMMITTED, HANDOFF_FOUND_DONE,
        HANDOFF_FOUND_BROKEN };
static const char *const states[]
    = { "", "running", "paused", "postmigrate", "inmigrate", "finish-migrate", "shutdown" };
static const char *const migrations[]
    = { "",       "none",      "setup",  "active",   "pre-switchover",
        "device", "completed", "failed", "cancelled" };
#define EACH(i, list) for (size_t i = 0; i < sizeof list / sizeof list[0]; i++)

static enum plan
plan_of (enum handoff_found found, bool word, const char *source, const char *migration,
         const char *dest)
{
  const struct plan_sight s = { .disks = found,
                                .word = word,
                                .source = source,
                                .migration = migration,
                                .dest = dest,
                                .dest_migration = "" };

  return migrate_plan (&s);
}

static bool
is (const char *a, const char *b)
{
  return strcmp (a, b) == 0;
}

static void
check_one (enum handoff_found found, bool word, const char *source, const char *migration,
           const char *dest)
{
  enum plan plan = plan_of (found, word, source, migration, dest);
  bool committed = found == HANDOFF_FOUND_COMMITTED || found == HANDOFF_FOUND_DONE;

  /* Back starts the source with its disks writable: never beside a destination that runs, never
   * after the commit. */
  if (plan == PLAN_BACK)
    cr_expect (!committed && !is (dest, "running") && !is (source, ""),
               "back: disks %d, %s, %s, %s", (int)found, source, migration, dest);
  /* Without the word it may have been committed, and a destination that cannot be asked may run. */
  bool doubt = !word && found != HANDOFF_FOUND_NONE && !committed;
  if (plan == PLAN_BACK && doubt)
    cr_expect (is (dest, "paused") || is (dest, "inmigrate"), "back in doubt: disks %d, %s, %s, %s",
               (int)found, source, migration, dest);
  /* Forward starts the destination and fences the source. */
  if (plan == PLAN_FORWARD)
    cr_expect ((committed && (is (dest, "paused") || is (dest, "running")))
                   || (found == HANDOFF_FOUND_UNDECIDED && is (dest, "running")),
               "forward: disks %d, %s, %s, %s", (int)found, source, migration, dest);
  /* Nothing is right only where exactly one runs, with its disks. */
  if (plan == PLAN_NOTHING)
    cr_expect ((committed && is (dest, "running"))
                   || (found == HANDOFF_FOUND_NONE && is (source, "running")
                       && !is (dest, "running") && !is (dest, "paused")
                       && !migration_is_active (migration)),
               "nothing: disks %d, %s, %s, %s", (int)found, source, migration, dest);
  /* What a killed coordinator leaves needs no operator. */
  if (plan == PLAN_OPERATOR)
    cr_expect (doubt || is (source, "") || is (dest, "running")
                   || (committed && !is (dest, "paused")),
               "operator: disks %d, %s, %s, %s", (int)found, source, migration, dest);
}

Test (migrate_plan, never_two_guests)
{
  EACH (d, disks)
  EACH (s, states)
  EACH (m, migrations)
  EACH (t, states)
  for (int word = 0; word < 2; word++)
    check_one (disks[d], word, states[s], migrations[m], states[t]);
}

/* One disk was handed over, and another one takes no part in that: this source is not stopped, and
 * its guest's disks are not fenced, unless the whole guest has arrived at the destination. */
Test (migrate_plan, one_disk_that_was_handed_over_alone)
{
  struct plan_sight s = { .disks = HANDOFF_FOUND_COMMITTED, .mixed = true, .word = true };

  EACH (i, states)
  EACH (m, migrations)
  EACH (t, states)
  EACH (a, migrations)
  {
    s.source = states[i];
    s.migration = migrations[m];
    s.dest = states[t];
    s.dest_migration = migrations[a];
    bool arrived = is (s.dest_migration, "completed") && !is (s.source, "running")
                   && !migration_is_active (s.migration);
    bool forward = is (s.dest, "paused") || is (s.dest, "running");
    cr_expect (migrate_plan (&s) == (arrived && forward ? PLAN_FORWARD : PLAN_OPERATOR),
               "%s, %s, %s, %s", s.source, s.migration, s.dest, s.dest_migration);
  }
}

/* A guardian knows more than can be seen, and never starts the source beside a destination that has
 * run, or may be run. */
static void
check_known (enum handoff_found found, const char *source, const char *dest, bool gone,
             const struct known *k)
{
  enum plan plan = plan_of (found, true, source, "completed", dest);
  enum plan known = migrate_plan_known (plan, found, k, source, dest, gone);
  bool committed = found == HANDOFF_FOUND_COMMITTED || found == HANDOFF_FOUND_DONE;

  if (known == plan)
    return;
  cr_expect (known == PLAN_BACK || known == PLAN_OPERATOR, "%d, %s, %s", (int)found, source, dest);
  if (known == PLAN_BACK && committed) {
    cr_expect (!is (dest, "running") && !is (source, "") && (gone || !is (dest, "")), "%d, %s, %s",
               (int)found, source, dest);
    cr_expect (!k->cont_sent, "it may have run: %d, %s, %s", (int)found, source, dest);
  }
  if (known == PLAN_BACK && !committed)
    cr_expect (plan == PLAN_NOTHING && is (source, "running"), "%d, %s, %s", (int)found, source,
               dest);
}

Test (migrate_plan, what_a_guardian_knows)
{
  EACH (d, disks)
  EACH (s, states)
  EACH (t, states)
  for (int bits = 0; bits < 8; bits++)
    for (int phase = 0; phase < PHASES; phase++) {
      struct known k = { .phase = (enum phase)phase, .committed = bits & 1, .cont_sent = bits & 2 };

      check_known (disks[d], states[s], states[t], (bits & 4) && is (states[t], ""), &k);
    }
}

Test (migrate_plan, what_a_guardian_goes_on_with)
{
  const struct known taking_back = { .phase = PHASE_BACK, .committed = true },
                     told_to_start = { .phase = PHASE_BACK, .committed = true, .cont_sent = true },
                     starting = { .phase = PHASE_START, .committed = true },
                     started = { .phase = PHASE_START, .committed = true, .cont_sent = true },
                     checking = { .phase = PHASE_CHECK }, copying = { .phase = PHASE_MIRROR };
#define KNOWN(plan, disks, known, source, dest, gone)                                              \
  migrate_plan_known (plan, HANDOFF_FOUND_##disks, &known, source, dest, gone)

  /* One disk was taken back, the other not yet. */
  cr_expect (KNOWN (PLAN_FORWARD, COMMITTED, taking_back, "postmigrate", "paused", false)
             == PLAN_BACK);
  cr_expect (KNOWN (PLAN_OPERATOR, COMMITTED, taking_back, "postmigrate", "", true) == PLAN_BACK);
  cr_expect (KNOWN (PLAN_OPERATOR, COMMITTED, taking_back, "postmigrate", "", false)
             == PLAN_OPERATOR);
  cr_expect (KNOWN (PLAN_OPERATOR, DONE, told_to_start, "postmigrate", "io-error", false)
             == PLAN_OPERATOR);
  cr_expect (KNOWN (PLAN_OPERATOR, DONE, told_to_start, "postmigrate", "", true) == PLAN_OPERATOR);
  cr_expect (KNOWN (PLAN_NOTHING, DONE, taking_back, "postmigrate", "running", false)
             == PLAN_NOTHING);
  cr_expect (KNOWN (PLAN_FORWARD, COMMITTED, starting, "postmigrate", "paused", false)
             == PLAN_FORWARD);
  cr_expect (KNOWN (PLAN_OPERATOR, DONE, starting, "postmigrate", "", true) == PLAN_BACK);
  cr_expect (KNOWN (PLAN_OPERATOR, DONE, starting, "postmigrate", "", false) == PLAN_OPERATOR);
  cr_expect (KNOWN (PLAN_OPERATOR, DONE, started, "postmigrate", "", true) == PLAN_OPERATOR);
  cr_expect (KNOWN (PLAN_NOTHING, NONE, copying, "running", "inmigrate", false) == PLAN_BACK);
  cr_expect (KNOWN (PLAN_NOTHING, NONE, checking, "running", "inmigrate", false) == PLAN_NOTHING);
#undef KNOWN
}

/* QEMU has all disks open by itself, and nothing records their commit. */
static enum plan
plan_ended (const struct known *k, const char *source, const char *migration, const char *dest,
            bool gone)
{
  enum handoff_found found = migrate_plan_ended (k, source, migration, dest);
  enum plan plan = plan_of (found, false, source, migration, dest);

  return k != NULL ? migrate_plan_known (plan, found, k, source, dest, gone) : plan;
}

/* The source is never started where the guest may have run at the destination: where all of it has
 * arrived there, as far as anybody sees; where `cont` was sent, as far as a guardian knows. */
Test (migrate_plan, a_commit_that_nothing_records)
{
  EACH (s, states)
  EACH (m, migrations)
  EACH (t, states)
  {
    bool whole = is (states[s], "postmigrate") && is (migrations[m], "completed");

    if (whole && !is (states[t], "inmigrate"))
      cr_expect (plan_ended (NULL, states[s], migrations[m], states[t], false) != PLAN_BACK, "%s",
                 states[t]);
    for (int phase = PHASE_START; phase <= PHASE_BACK; phase++) {
      const struct known k = { .phase = (enum phase)phase, .committed = true, .cont_sent = true };

      if (phase != PHASE_BACK || !is (states[s], "running"))
        cr_expect (plan_ended (&k, states[s], migrations[m], states[t], true) != PLAN_BACK,
                   "phase %d: %s, %s, %s", phase, states[s], migrations[m], states[t]);
    }
  }
}

Test (migrate_plan, after_a_commit_that_nothing_records)
{
  const struct known not_yet = { .phase = PHASE_SWITCH },
                     committed = { .phase = PHASE_COMMIT, .committed = true },
                     started = { .phase = PHASE_START, .committed = true, .cont_sent = true },
                     done = { .phase = PHASE_DONE, .committed = true, .cont_sent = true },
                     taking_back = { .phase = PHASE_BACK, .committed = true },
                     taken_back = { .phase = PHASE_FAILED, .committed = true };
#define ENDED(known, source, dest, gone) plan_ended (known, source, "completed", dest, gone)

  /* By hand. */
  cr_expect (ENDED (NULL, "postmigrate", "running", false) == PLAN_NOTHING);
  cr_expect (ENDED (NULL, "postmigrate", "paused", false) == PLAN_FORWARD);
  cr_expect (ENDED (NULL, "postmigrate", "io-error", false) == PLAN_OPERATOR);
  cr_expect (ENDED (NULL, "postmigrate", "", true) == PLAN_OPERATOR);
  cr_expect (ENDED (NULL, "postmigrate", "inmigrate", false) == PLAN_BACK);
  cr_expect (ENDED (NULL, "paused", "paused", false) == PLAN_BACK);
  cr_expect (ENDED (NULL, "running", "", true) == PLAN_NOTHING);
  cr_expect (ENDED (NULL, "", "paused", false) == PLAN_OPERATOR);
  /* A guardian: the guest was stopped there to give an image back, or nothing can be seen. */
  cr_expect (ENDED (&done, "postmigrate", "paused", false) == PLAN_FORWARD);
  cr_expect (ENDED (&done, "postmigrate", "", false) == PLAN_OPERATOR);
  cr_expect (ENDED (&done, "postmigrate", "", true) == PLAN_OPERATOR);
  cr_expect (ENDED (&done, "", "running", false) == PLAN_NOTHING);
  cr_expect (ENDED (&started, "postmigrate", "", true) == PLAN_OPERATOR);
  cr_expect (ENDED (&committed, "postmigrate", "paused", false) == PLAN_FORWARD);
  cr_expect (ENDED (&committed, "postmigrate", "", true) == PLAN_BACK);
  cr_expect (ENDED (&not_yet, "postmigrate", "paused", false) == PLAN_BACK);
  cr_expect (ENDED (&not_yet, "postmigrate", "running", false) == PLAN_NOTHING);
  cr_expect (ENDED (&taking_back, "postmigrate", "paused", false) == PLAN_BACK);
  cr_expect (ENDED (&taking_back, "running", "", true) == PLAN_BACK);
  cr_expect (ENDED (&taken_back, "running", "", true) == PLAN_NOTHING);
#undef ENDED
}

/* Where a coordinator can be killed, in their order. */
Test (migrate_plan, each_step)
{
  cr_expect (plan_of (HANDOFF_FOUND_NONE, true, "running", "none", "inmigrate") == PLAN_NOTHING);
  cr_expect (plan_of (HANDOFF_FOUND_NONE, true, "running", "active", "inmigrate") == PLAN_BACK);
  cr_expect (plan_of (HANDOFF_FOUND_NONE, true, "finish-migrate", "pre-switchover", "inmigrate")
             == PLAN_BACK);
  cr_expect (plan_of (HANDOFF_FOUND_UNDECIDED, true, "finish-migrate", "device", "inmigrate")
             == PLAN_BACK);
  cr_expect (plan_of (HANDOFF_FOUND_NONE, true, "postmigrate", "completed", "paused") == PLAN_BACK);
  cr_expect (plan_of (HANDOFF_FOUND_BROKEN, true, "postmigrate", "completed", "paused")
             == PLAN_BACK);
  cr_expect (plan_of (HANDOFF_FOUND_COMMITTED, true, "postmigrate", "completed", "paused")
             == PLAN_FORWARD);
  cr_expect (plan_of (HANDOFF_FOUND_DONE, true, "postmigrate", "completed", "paused")
             == PLAN_FORWARD);
  cr_expect (plan_of (HANDOFF_FOUND_COMMITTED, true, "", "", "paused") == PLAN_FORWARD);
  cr_expect (plan_of (HANDOFF_FOUND_DONE, true, "postmigrate", "completed", "running")
             == PLAN_NOTHING);
  cr_expect (plan_of (HANDOFF_FOUND_DONE, true, "postmigrate", "completed", "") == PLAN_OPERATOR);
  cr_expect (plan_of (HANDOFF_FOUND_NONE, true, "", "", "inmigrate") == PLAN_OPERATOR);
  cr_expect (plan_of (HANDOFF_FOUND_UNDECIDED, true, "postmigrate", "completed", "") == PLAN_BACK);
  cr_expect (plan_of (HANDOFF_FOUND_UNDECIDED, false, "postmigrate", "completed", "")
             == PLAN_OPERATOR);
  cr_expect (plan_of (HANDOFF_FOUND_UNDECIDED, false, "postmigrate", "completed", "paused")
             == PLAN_BACK);
}
