/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The server of the guest's image while `adopt` puts the guest there: started, and replaced where
 * it does not answer.  QEMU's node connects again, so a new server gets the guest's writes again.
 * One that the user has started is not replaced: only he knows its arguments.
 */

#ifndef NBDMIRROR_CMD_ADOPT_OWN_SERVER_H
#define NBDMIRROR_CMD_ADOPT_OWN_SERVER_H

#include "cmd/adopt/adopt.h"

/* Start it.  0, or -1 after an error message. */
int own_server_start (struct adopt *a);

/* Both are for stuck.h; OPAQUE is a struct adopt.  The first one is for the time of the move: if a
 * new server does not help, the job must fail without one, and the guest stays where it was. */
void own_server_stuck (void *opaque, unsigned attempt);
/* The guest has moved, and needs its server: one that answers is left alone. */
void own_server_stuck_later (void *opaque, unsigned attempt);

#endif
