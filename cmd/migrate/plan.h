/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Which side has to run after a coordinator was killed?  Pure functions of what is seen.
 */

#ifndef NBDMIRROR_CMD_MIGRATE_PLAN_H
#define NBDMIRROR_CMD_MIGRATE_PLAN_H

#include <stdbool.h>

#include "cmd/migrate/notes.h"

enum plan {
  PLAN_NOTHING, /* one side runs, with its disks writable there */
  PLAN_FORWARD, /* finish the commit and start the destination */
  PLAN_BACK,    /* release, cancel, end the destination, start the source */
  PLAN_OPERATOR /* neither is safe */
};

/* QEMU has all disks open by itself, and their workers have ended (HANDOFF_FOUND_ENDED).  Nothing
 * records the commit of such disks, so what both machines say has to tell: DONE or NONE.  KNOWN:
 * what a guardian knows, or NULL. */
enum handoff_found migrate_plan_ended (const struct known *known, const char *source,
                                       const char *migration, const char *dest);
/* What is seen. */
struct plan_sight {
  enum handoff_found disks; /* not HANDOFF_FOUND_ENDED */
  bool mixed;               /* committed, but for one that takes no part in that */
  bool word;                /* the disks' decision word is there (coordinator_has_word) */
  /* Run states as query-status names them, "" if it cannot be asked; and what query-migrate says of
   * each. */
  const char *source, *migration, *dest, *dest_migration;
};

enum plan migrate_plan (const struct plan_sight *s);
/* The same for a guardian, which knows more: whether `cont` was ever sent, and whether a hand-over
 * was being taken back.  DEST_GONE: the destination QEMU is known to have ended. */
enum plan migrate_plan_known (enum plan plan, enum handoff_found disks, const struct known *known,
                              const char *source, const char *dest, bool dest_gone);

/* Is a migration of that status one that could still go on? */
bool migration_is_active (const char *status);

#endif
