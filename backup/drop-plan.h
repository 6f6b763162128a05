/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * How backups are taken out of a disk's chain of files, so that all others stay what they are.
 *
 *   full ← inc1 ← inc2 ← inc3
 *
 * An incremental in the middle is dropped by writing into the next one that is kept what that would
 * lack (qemu-img rebase).  A full one is dropped by writing into its file what the oldest one that
 * is kept adds (qemu-img commit): that one then is the full one.  So only what was changed is
 * moved, and a chain may go on for ever.
 *
 * At each instant every backup that is kept reads as before, since what is written into a file is
 * what the file above it holds already.  So whoever is killed begins again, with the same plan.
 *
 * Pure: no I/O, any thread.
 */

#ifndef NBDMIRROR_BACKUP_DROP_PLAN_H
#define NBDMIRROR_BACKUP_DROP_PLAN_H

#include <stdbool.h>
#include <stddef.h>

/* One backup of the disk. */
struct drop_link {
  bool full; /* it begins a chain; the first link does so in any case */
  bool kept;
};

enum drop_kind {
  DROP_REBASE, /* write into TOP what the links between it and BASE hold, then TOP lies on BASE */
  DROP_COMMIT, /* write into BASE, a full one that is dropped, what TOP adds */
  DROP_RELINK, /* TOP lay on the one that was committed: now it lies on BASE, which is equal */
  DROP_BECOME  /* TOP, which was committed into BASE, is the full one from now on: BASE's file */
};

struct drop_step {
  enum drop_kind kind;
  size_t top, base; /* links */
};

/* The steps that take those out of LINKS, the oldest first, that are not kept.  STEPS has room for
 * NR.  Returns how many there are.  Files of links that are not kept are deleted after all steps,
 * but for one that another link has become. */
size_t drop_plan (const struct drop_link *links, size_t nr, struct drop_step *steps);

#endif
