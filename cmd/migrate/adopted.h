/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * migrate --adopt and --give-back: the guest's disks are on the tracked path only for the time of
 * the move.
 *
 * The work is done by `nbdmirror adopt` and `give-back`, each a process of its own.  Both may be
 * killed at any instant and run again.  They end when the process that started them ends, so none
 * of them is left to work beside whoever goes on after a kill.  QEMU's monitor has one client at a
 * time, so ours is closed meanwhile.
 */

#ifndef NBDMIRROR_CMD_MIGRATE_ADOPTED_H
#define NBDMIRROR_CMD_MIGRATE_ADOPTED_H

#include <stdbool.h>

#include "cmd/migrate/migrate.h"

/* Put every disk onto the tracked path.  0, or -1 with the reason in the journal: some may be
 * there. */
int adopted_begin (struct migrate *m);

/* Take every disk off it again at the source, where the guest runs.  True: none is left there.  It
 * may be called again. */
bool adopted_end (struct migrate *m);

/* Start servers again that were killed: the guest waits for them, and so may QEMU's monitor.  Call
 * it before anything is asked of the source QEMU afterwards.  ABORTED: this hand-over's decision is
 * "abort", so a draft of its fence means nothing.  FENCED_TOO: as for revive().  Returns how many
 * it has started. */
unsigned adopted_revive (struct migrate *m, bool aborted, bool fenced_too);

/* Is any disk still on it, as far as this host knows? */
bool adopted_any (const struct migrate *m);

/* The guest runs at the destination, through the server of `nbdmirror receive`: take it off that.
 * False after an error message: it goes on through that server.  It may be called again. */
bool adopted_give_back (struct migrate *m);
/* Has D, which QEMU had open by itself, been taken off it?  Its server has ended then, and the
 * destination's QEMU does not use it any more.  Not for several threads: it asks that QEMU. */
bool adopted_was_given_back (struct migrate *m, const struct disk *d);
/* Say how to do that by hand. */
void adopted_tell_give_back (const struct migrate *m);

/* The guest is gone from here, and so is its QEMU: end the servers that were started for it. */
void adopted_forget (struct migrate *m);

#endif
