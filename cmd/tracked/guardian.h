/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A process beside the worker, so that a worker that is killed or stopped leaves no guest stopped
 * for ever, and nothing in its QEMU.
 *
 *   the worker ended before the hold, or after release   the bitmaps and exports are removed
 *   it ended while the guest was held                    the guest goes on first
 *   the lease is over                                    the worker is killed, then the same
 *   the worker was told that the commit is good          the guest stays stopped
 *
 * The guardian alone decides between the last two, so a worker that was too late learns it before
 * it says that the hand-over is complete.  Its own end makes hold and commit fail.
 *
 * In a hand-over of several disks the word that they share decides instead.  The guardian turns it
 * to "abort" before the guest goes on, and if it says "commit" the guest stays stopped.
 */

#ifndef NBDMIRROR_CMD_TRACKED_GUARDIAN_H
#define NBDMIRROR_CMD_TRACKED_GUARDIAN_H

#include <stdint.h>
#include <sys/types.h>

#include "cmd/tracked/bitmaps.h"
#include "mirror/job/tracker.h"

struct guardian {
  pid_t pid; /* 0: there is none */
  int fd;    /* the worker's end */
};

/* Start it, before this process has a thread or a connection.  B is what it removes from the QEMU
 * whose monitor is at QMP.  0, or -1 with *ERROR. */
int guardian_start (struct guardian *g, const char *qmp, const struct bitmaps *b, char **error);

/* The guest is about to be stopped, or it was STOPPED by somebody else, who lets it go on as well.
 * 0, or -1 with *ERROR: do not stop it. */
int guardian_hold (struct guardian *g, const struct tracker_hold *hold, bool stopped, char **error);

/* The guest goes on again.  0, or -1 with *ERROR. */
int guardian_release (struct guardian *g, char **error);

/* 0: the guest stays stopped, whatever becomes of this process.  -1 with *ERROR: it does not. */
int guardian_commit (struct guardian *g, char **error);

/* Wait for its end.  It tidies up in the guest's QEMU if that was not done. */
void guardian_end (struct guardian *g);

#endif
