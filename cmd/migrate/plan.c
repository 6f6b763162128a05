/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See plan.h.  No I/O, so that it is tested exhaustively.  The first row that fits counts:
 *
 *   disks            destination       source           plan
 *   ---------------  ----------------  ---------------  ---------------------------------------
 *   committed,       any               running, or      operator: it was handed over alone, and
 *   but for one                        migrating        the guest may run here with the others
 *   committed,       its migration is  any              operator: the same
 *   but for one      not "completed"
 *   recorded by all  running           any              nothing: the source is fenced
 *   committed        running           any              forward: finish the commit
 *   committed        paused            any              forward: only `cont` is missing
 *   committed        else              any              operator: the memory is nowhere else
 *   undecided        running           any              forward: it is started after a commit
 *   else             running           any              operator: nobody starts it before one
 *   not committed    any               cannot be asked  operator
 *   held, no word    not waiting,      any              operator: they may be committed, and
 *                    not paused                         the guest started there
 *   none takes part  gone, or waiting  running, not     nothing
 *                                      migrating
 *   else             any               any              back
 *
 * Nothing records the commit of a disk that QEMU has open by itself.  Where all are such disks and
 * their workers have ended, the whole memory arrives at the destination only after all were
 * prepared, and the source has not run since.  So the destination's disks are complete then, and it
 * may have run on them:
 *
 *   source       migration  destination      what a guardian knows         they count as
 *   -----------  ---------  ---------------  ----------------------------  --------------
 *   not running  any        any              committed, and being          committed
 *                                            taken back
 *   any          any        any              committed, not taken back     committed
 *   postmigrate  completed  running          anything else                 committed
 *   postmigrate  completed  waits no longer  (nobody knows anything)       committed
 *   any          any        any              any                           not committed
 */

#include "config.h"

#include <string.h>

#include "cmd/migrate/plan.h"

bool
migration_is_active (const char *status)
{
  static const char *const active[] = { "setup",       "active",     "pre-switchover", "device",
                                        "wait-unplug", "cancelling", "postcopy-active" };

  for (size_t i = 0; i < sizeof active / sizeof active[0]; i++)
    if (strcmp (status, active[i]) == 0)
      return true;
  return false;
}

enum handoff_found
migrate_plan_ended (const struct known *known, const char *source, const char *migration,
                    const char *dest)
{
  bool committed,
      whole = strcmp (source, "postmigrate") == 0 && strcmp (migration, "completed") == 0;

  if (known != NULL && known->committed && known->phase == PHASE_BACK)
    committed = strcmp (source, "running") != 0;
  else if (known != NULL && known->committed && known->phase < PHASE_BACK)
    committed = true;
  else if (known != NULL)
    committed = whole && strcmp (dest, "running") == 0;
  else
    committed = whole && strcmp (dest, "inmigrate") != 0;
  return committed ? HANDOFF_FOUND_DONE : HANDOFF_FOUND_NONE;
}

/* One disk is handed over, and another one takes no part in that.  Was it handed over with it, and
 * taken back?  Then the whole guest has arrived at the destination, and has not run here since.
 * Else the first one was handed over alone, and the guest may run here with the other one. */
static bool
went_alone (const struct plan_sight *s)
{
  return s->mixed
         && (strcmp (s->source, "running") == 0 || migration_is_active (s->migration)
             || strcmp (s->dest_migration, "completed") != 0);
}

enum plan
migrate_plan (const struct plan_sight *s)
{
  bool committed = s->disks == HANDOFF_FOUND_COMMITTED || s->disks == HANDOFF_FOUND_DONE;
  bool dest_runs = strcmp (s->dest, "running") == 0;

  if (committed && went_alone (s))
    return PLAN_OPERATOR;
  if (committed) {
    if (dest_runs)
      return s->disks == HANDOFF_FOUND_DONE ? PLAN_NOTHING : PLAN_FORWARD;
    return strcmp (s->dest, "paused") == 0 ? PLAN_FORWARD : PLAN_OPERATOR;
  }
  if (dest_runs)
    return s->disks == HANDOFF_FOUND_UNDECIDED ? PLAN_FORWARD : PLAN_OPERATOR;
  if (s->source[0] == '\0')
    return PLAN_OPERATOR;
  if (s->disks != HANDOFF_FOUND_NONE && !s->word && strcmp (s->dest, "paused") != 0
      && strcmp (s->dest, "inmigrate") != 0)
    return PLAN_OPERATOR;
  if (strcmp (s->source, "running") == 0 && s->disks == HANDOFF_FOUND_NONE
      && (s->dest[0] == '\0' || strcmp (s->dest, "inmigrate") == 0)
      && !migration_is_active (s->migration))
    return PLAN_NOTHING;
  return PLAN_BACK;
}

enum plan
migrate_plan_known (enum plan plan, enum handoff_found disks, const struct known *known,
                    const char *source, const char *dest, bool dest_gone)
{
  bool committed = disks == HANDOFF_FOUND_COMMITTED || disks == HANDOFF_FOUND_DONE;

  if (committed && source[0] != '\0') {
    /* It was taken back on some disks already.  A destination that does not answer may be in
     * somebody else's hands.  One that was told to start may have run. */
    if (known->phase == PHASE_BACK && known->committed && !known->cont_sent
        && strcmp (dest, "running") != 0)
      return dest[0] != '\0' || dest_gone ? PLAN_BACK : PLAN_OPERATOR;
    /* It has never run there. */
    if (plan == PLAN_OPERATOR && dest_gone && !known->cont_sent)
      return PLAN_BACK;
  }
  /* The guest runs; the rest of a roll-back is missing. */
  if (plan == PLAN_NOTHING && !committed && known->phase > PHASE_CHECK
      && known->phase != PHASE_FAILED)
    return PLAN_BACK;
  return plan;
}
