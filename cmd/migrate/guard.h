/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A guardian, so that a coordinator that is killed at a bad moment does not leave a guest that runs
 * nowhere.
 *
 *   guardian (the process that was started)      coordinator (its child, in a session of its own)
 *   waits; passes signals on                     does everything
 *
 *   the coordinator ended in order               its exit status is passed on
 *   it was killed, or crashed                    the guardian does what --recover does, several
 *                                                times if it has to
 *   it is stopped for too long while the guest   the same, after killing it
 *   is stopped
 *   the guardian was killed                      that counts as SIGTERM: roll back before the
 *                                                commit, go on after it
 *
 * If both are killed, --recover by hand is left.
 *
 * The guardian has no connection and no file open while the coordinator lives.  QEMU serves one
 * monitor client at a time.  The connections of a dead coordinator were closed before wait() told
 * that it is dead: all are close-on-exec, so no worker or hook keeps one.  For the same reason two
 * recoveries cannot work at the same time: whoever has both monitors goes on.
 *
 * The guardian is the reaper of its descendants, so the workers of a dead coordinator become its
 * own children.
 */

#ifndef NBDMIRROR_CMD_MIGRATE_GUARD_H
#define NBDMIRROR_CMD_MIGRATE_GUARD_H

#include <stdint.h>

#include "cmd/migrate/notes.h"

/* How a coordinator has ended before its time. */
struct guard_death {
  char how[128];
  bool cancelled; /* after a signal that was sent to the guardian */
};

/* DEATH is NULL in the coordinator; in the guardian it tells how that one died.  Returns an exit
 * status. */
typedef int guard_work (void *opaque, const struct guard_death *death);

/* Run WORK in a child and look after it.  If the child dies before its notes_finished(), WORK runs
 * in this process as well.  A coordinator that is stopped (SIGSTOP) while the guest may be stopped
 * too is killed after STOPPED_MS.  Returns, in both processes, the status to exit with. */
int guard_run (struct notes *notes, uint64_t stopped_ms, guard_work *work, void *opaque);

/* To be called by WORK once its signal handlers are there: signals arrive from now on. */
void guard_ready (const struct guard_death *death);

#endif
