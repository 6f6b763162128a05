/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What participant.c and participant-end.c share.  Control thread only.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_PARTICIPANT_INTERNAL_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_PARTICIPANT_INTERNAL_H

#include <stdbool.h>

struct mirror;
struct participant;

/* No hand-off is active any more. */
void participant_finish (struct participant *p);

/* Why the last hand-off was given up, for a coordinator that asks only now.  NULL: it was not. */
void participant_note_reason (struct participant *p, const char *reason);

/* Answer the coordinator, if it still waits, with an error.  The reason is noted. */
void participant_refuse (struct mirror *m, const char *class_, const char *reason);

/* Remove the draft of the fence record.  One that cannot be removed would fence the next server, so
 * that is logged, and tried again later. */
void participant_drop_draft (struct mirror *m);

/* The word says "commit".  The gate is fenced in memory: make that durable and tell everybody.
 * False if the record cannot be written now; then it is tried again.  Or the guest is to be
 * released: do that.  False if it was let go before, by the end of the lease; no hand-off is active
 * any more in either case. */
bool participant_commit (struct mirror *m);

/* The message for an error class of the final look. */
const char *participant_look_message (const char *class_);

#endif
