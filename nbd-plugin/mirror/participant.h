/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The participant: this disk's part in a two-phase hand-off of one or several disks.  The
 * coordinator, which is another process, gives every disk's filter the same decision word; the
 * worker holds the gate, copies the rest and says "prepared"; then the word decides, whoever dies.
 *
 *   none --mirror-prepare--> asked --mirror-hold--> holding --mirror-prepared--> prepared
 *     ^                        |                       |                          |     |
 *     +------ abort: the word goes to "abort" first ---+---- unless it says commit+     |
 *     +------ commit: gate fenced, fence record durable, region dropped ----------------+
 *
 * With several disks the first one that is held would wait for all others to come so far.  So a
 * coordinator asks in two steps.  Mirror-prepare with "arm" is answered when all is done that can
 * be done while the guest runs: the worker has copied and flushed, the draft is durable.  When all
 * disks are armed, mirror-prepare-now holds them.  If nothing is left, which is usual, the disk is
 * prepared at once, without a word to the worker:
 *
 *   asked --the worker's answer--> armed --mirror-prepare-now--> holding --> prepared
 *
 * The draft of the fence record is made durable before the gate is held, since that takes tens of
 * milliseconds on a busy disk and the guest would wait for it.  It is needed from "prepared" on
 * only, so it is marked then (fence.h): a server that dies before leaves no hand-off in doubt.
 *
 * With "release" nothing is handed over: the commit ends the job and lets the guest go on.  So the
 * destination stays as the disk was at that instant.  There is no fence record then.  The region is
 * taken out of the tracker before the gate opens, so the worker finds nothing to copy that was
 * written later, whenever it hears of the commit.
 *
 * Control thread only; the gate may leave a prepared hold by itself at any time (gate.h), which is
 * noticed in participant_tick().
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_PARTICIPANT_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_PARTICIPANT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "control/decision.h"
#include "control/server.h"
#include "nbd-plugin/mirror/fence.h"
#include "nbd-plugin/mirror/relay.h"

struct mirror;

struct participant {
  bool active;
  struct control_peer *coordinator;
  struct decision *decision; /* owned */
  char token[ROLLBACK_TOKEN_MAX + 1];
  char successor[FENCE_SUCCESSOR_MAX + 1]; /* for the fence record; "" none */
  bool keep_waiters;
  bool releases; /* at the commit the guest goes on here: nothing is fenced */
  int64_t lease_ms;
  uint64_t generation; /* of its hold, 0: none yet */
  bool arm;            /* in two steps */
  int64_t armed_ns;    /* since when it is armed; 0: it is not */
  bool now_owed;       /* mirror-prepare-now waits for its answer, */
  json_t *now_id;      /* with this id (owned), or NULL */
  bool told_worker;    /* that the gate is held */
  bool prepared;
  bool committed;     /* the word says so, and downtime_ms is known */
  bool kept;          /* it stands without the coordinator's connection */
  int64_t retry_ns;   /* the fence record could not be committed: try again then */
  char *record_error; /* why, or NULL */
  char *given_up;     /* why the last hand-off was, or NULL */
};

/* mirror-prepare. FD is the decision word's, owned by the callee, or -1.  Answers. */
void participant_begin (struct mirror *m, struct control_peer *peer, json_t *id, json_t *args,
                        int fd);

/* mirror-prepare-now.  Answers, later perhaps. */
void participant_prepare_now (struct mirror *m, struct control_peer *peer, json_t *id);

/* The worker gives up an armed hand-off, held or not; CLASS_ and REASON are for the coordinator.
 * False: it is committed already. */
bool participant_worker_gives_up (struct mirror *m, const char *class_, const char *reason);

/* The worker is about to hold the gate for the hand-off that is active: make the draft durable.  0,
 * or -1 with *ERROR (caller frees). */
int participant_draft (struct mirror *m, char **error);

/* That hold ended, and the hand-off goes on without one: no draft is to be left. */
void participant_unhold (struct mirror *m);

/* mirror-prepared. Answers. */
void participant_prepared (struct mirror *m, struct control_peer *peer, json_t *id,
                           uint64_t generation, uint64_t session);

/* The worker's answer to the hand-off's request; takes RELAY over. RET or ERROR is NULL. */
void participant_worker_answer (struct mirror *m, struct relay *relay, json_t *ret, json_t *error);

/* mirror-decision: where the hand-off stands, with the decision word while it is prepared.  KEEP,
 * for the coordinator only: from now on it stands without the connection. Answers. */
void participant_decision (struct mirror *m, struct control_peer *peer, json_t *id, bool keep);

/* A peer is gone: if it was the coordinator, that aborts, unless it is kept or decided. */
void participant_peer_closed (struct mirror *m, struct control_peer *peer);

/* job-finalize, mirror-release, mirror-rollback. Answer. */
void participant_finalize (struct mirror *m, struct control_peer *peer, json_t *id,
                           uint64_t generation);
void participant_release (struct mirror *m, struct control_peer *peer, json_t *id,
                          uint64_t generation);
void participant_rollback (struct mirror *m, struct control_peer *peer, json_t *id,
                           const char *token);

/* The worker left or was lost, as attachment_lost() says it: the hand-off aborts, the gate opens
 * unless it is fenced, and whoever waits for the worker's answer gets an error. */
void participant_worker_gone (struct mirror *m, const char *state, const char *reason);

/* Abort, unless the word says "commit" already: then it is committed, and true is returned.  CLASS
 * and REASON (a constant) go to the coordinator if it still waits for an answer.  Nothing happens
 * if none is active. */
bool participant_abort (struct mirror *m, const char *class_, const char *reason);

void participant_tick (struct mirror *m);

/* The server stops. */
void participant_shutdown (struct mirror *m);

#endif
