/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The part of a copy of a disk in use in a two-phase hand-off of one or several disks.  Towards the
 * coordinator (mirror/handoff/coordinator.h) it behaves as a filter does.  What the filter does
 * with its gate is done by stopping the guest.
 *
 *   none --mirror-prepare--> armed --mirror-prepare-now--> holding --> prepared
 *     ^                        |                              |        |     |
 *     +--- abort: the word goes to "abort" first, then the guest goes on     |
 *     +--- commit: the word says so, and the guest stays stopped ------------+
 *
 * With "guest-stopped" it is held by mirror-prepare itself.  The word decides, whoever dies: the
 * tracker's guardian has it as well, and turns it to "abort" before it lets the guest go on.
 *
 * There is no fence: nothing but its monitor keeps the guest stopped after the commit.  So the
 * bitmap is looked at once more then, and a guest that has written is told of.
 *
 * Everything here belongs to the job's thread.
 */

#ifndef NBDMIRROR_MIRROR_JOB_COPY_HANDOFF_H
#define NBDMIRROR_MIRROR_JOB_COPY_HANDOFF_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "control/decision.h"
#include "control/server.h"
#include "mirror/handoff/coordinator.h"
#include "mirror/job/job.h"

struct copy;

struct copy_handoff {
  struct copy *copy; /* NULL: it does not run */

  bool active;
  struct control_peer *peer; /* the coordinator; NULL: it has left a hand-off that it had kept */
  bool owed;                 /* its command waits for an answer, */
  json_t *id;                /* with this id (owned), or NULL */
  struct decision *decision; /* owned */
  char token[ROLLBACK_TOKEN_MAX + 1];
  uint64_t lease_ms, end_ns; /* end_ns 0: not held yet */
  uint64_t generation;       /* of this one, or of the last */
  bool guest_stopped, wanted, prepared, kept;

  bool committed;
  double downtime_ms;
  char *fault; /* it is committed, but the guest has run; or NULL */
};

void copy_handoff_free (struct copy_handoff *h);

/* ---- commands; they answer, and take FD over ---- */

void copy_handoff_prepare (struct copy_handoff *h, struct control_peer *peer, json_t *id,
                           json_t *args, int fd);
void copy_handoff_prepare_now (struct copy_handoff *h, struct control_peer *peer, json_t *id);
void copy_handoff_decision (struct copy_handoff *h, struct control_peer *peer, json_t *id,
                            json_t *args);
void copy_handoff_release (struct copy_handoff *h, struct control_peer *peer, json_t *id,
                           json_t *args);
void copy_handoff_finalize (struct copy_handoff *h, struct control_peer *peer, json_t *id,
                            json_t *args);
void copy_handoff_peer_closed (struct copy_handoff *h, struct control_peer *peer);

/* ---- for tracked.c; H may be NULL: no control socket ---- */

/* Look at the word and the lease.  True when the copy is over, with *RESULT. */
bool copy_handoff_step (struct copy_handoff *h, enum job_result *result);

/* Is the guest to be held now? */
bool copy_handoff_wants_hold (const struct copy_handoff *h);

/* It is held, everything is at the destination, and the tracker's check was good. */
void copy_handoff_prepared (struct copy_handoff *h);

/* It cannot be: the word goes to "abort", the guest goes on, and the coordinator is told of CLASS_
 * and WHY.  False if it is committed: then the guest stays stopped.  True also if there is none. */
bool copy_handoff_give_up (struct copy_handoff *h, const char *class_, const char *why);

#endif
