/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The two-phase hand-off of this disk (blueprint 7).  The coordinator gives every disk's filter the
 * same decision word; the worker holds the gate, copies the rest and says "prepared"; then the word
 * decides, whoever dies.
 *
 *   none --mirror-prepare--> asked --mirror-hold--> holding --mirror-prepared--> prepared
 *     ^                        |                       |                          |     |
 *     +------ abort: the word goes to "abort" first ---+---- unless it says commit+     |
 *     +------ commit: gate fenced, fence record durable, region dropped ----------------+
 *
 * The draft of the fence record is made durable before the gate is held, since that takes tens of
 * milliseconds on a busy disk and the guest would wait for it.  It is needed from "prepared" on
 * only; a server that dies between the two leaves a hand-off in doubt that in truth was not decided
 * yet, which is the safe side.
 *
 * Control thread only; the gate may leave a prepared hold by itself at any time (gate.h), which is
 * noticed in handoff_tick().
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_PARTICIPANT_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_PARTICIPANT_H

#include "nbd-plugin/mirror/filter.h"

/* mirror-prepare. FD is the decision word's, owned by the callee, or -1.  Answers. */
void handoff_begin (struct mirror *m, struct control_peer *peer, json_t *id, json_t *args, int fd);

/* The worker is about to hold the gate for the hand-off that is active: make the draft durable.  0,
 * or -1 with *ERROR (caller frees). */
int handoff_draft (struct mirror *m, char **error);

/* That hold ended, and the hand-off goes on without one: no draft is to be left. */
void handoff_unhold (struct mirror *m);

/* mirror-prepared. Answers. */
void handoff_prepared (struct mirror *m, struct control_peer *peer, json_t *id, uint64_t generation,
                       uint64_t session);

/* The worker's answer to the hand-off's request; takes RELAY over. RET or ERROR is NULL. */
void handoff_worker_answer (struct mirror *m, struct relay *relay, json_t *ret, json_t *error);

/* mirror-decision: where the hand-off stands, with the decision word while it is prepared.  KEEP,
 * for the coordinator only: from now on it stands without the connection. Answers. */
void handoff_decision (struct mirror *m, struct control_peer *peer, json_t *id, bool keep);

/* A peer is gone: if it was the coordinator, that aborts, unless it is kept or decided. */
void handoff_peer_closed (struct mirror *m, struct control_peer *peer);

/* job-finalize, mirror-release, mirror-rollback. Answer. */
void handoff_finalize (struct mirror *m, struct control_peer *peer, json_t *id,
                       uint64_t generation);
void handoff_release (struct mirror *m, struct control_peer *peer, json_t *id, uint64_t generation);
void handoff_rollback (struct mirror *m, struct control_peer *peer, json_t *id, const char *token);

/* Abort, unless the word says "commit" already: then it is committed.  CLASS and REASON (a
 * constant) go to the coordinator if it still waits for an answer.  Nothing happens if none is
 * active. */
void handoff_abort (struct mirror *m, const char *class_, const char *reason);

void handoff_tick (struct mirror *m);

/* The server stops. */
void handoff_shutdown (struct mirror *m);

#endif
