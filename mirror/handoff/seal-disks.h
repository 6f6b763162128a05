/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * After the commit: no late worker may write to the destinations any more (seal.h).  The worker of
 * each disk sees to that when it hears of the commit; but it may be stopped, or dead, so the
 * coordinator does too.
 */

#ifndef NBDMIRROR_MIRROR_HANDOFF_SEAL_DISKS_H
#define NBDMIRROR_MIRROR_HANDOFF_SEAL_DISKS_H

#include <stdbool.h>

/* For one disk, as long as nothing of it hangs longer than that. */
#define HANDOFF_SEAL_MS 16000

enum handoff_seal_state {
  HANDOFF_SEAL_NONE, /* the destination is no server of `nbdmirror receive`: there is nothing to
                        seal */
  HANDOFF_SEAL_DONE,
  HANDOFF_SEAL_UNKNOWN, /* nobody knows what the destination was, see `error` */
  HANDOFF_SEAL_FAILED   /* see `error` */
};

struct coordinator_seal {
  enum handoff_seal_state state;
  char *target; /* the destination's name, or NULL */
  char *error;  /* or NULL */
};

/* Seal the destination of each of the NR CONTROLS, all at the same time, and fill in SEALS.  The
 * filters are asked where to.  Where we cannot reach it (the worker may have keys that we lack) the
 * worker is waited for.  Blocks, for little more than HANDOFF_SEAL_MS.  Never before the commit.
 * Again does no harm. */
void coordinator_seal_all (char *const controls[], unsigned nr, struct coordinator_seal *seals);
void coordinator_seal_free (struct coordinator_seal *seals, unsigned nr);

#endif
