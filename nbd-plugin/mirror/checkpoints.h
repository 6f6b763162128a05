/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Checkpoints of this disk, for users.  dirty-bitmap/state/recordings.h says what one is.
 *
 * A checkpoint of several disks has one instant, or there is none on any of them.  As in a hand-off
 * (participant.h) the client gives every disk's filter the same decision word:
 *
 *   none --prepare--> marking both --older writes have ended--> prepared
 *     ^                    |                                       |   |
 *     +---- abort: the word goes to "abort" first, at the limit ---+   |
 *     +---- durable <---- the disk is flushed <---- "commit" ----------+
 *
 * A disk may take long to flush, so that is done by a thread of its own, and the control thread
 * serves its clients.  No guest is held meanwhile.  All disks are prepared when the word is
 * decided, so that moment is the common instant.
 *
 * The control thread's, but for the flush.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_CHECKPOINTS_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_CHECKPOINTS_H

#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "control/decision.h"
#include "control/server.h"

struct mirror;

#define NO_STATE_FILE "this server keeps no state file: start it with --state FILE (mirror-state=)"

#define CHECKPOINT_FLUSHES (-1)

struct checkpointing {
  struct control_peer *peer; /* NULL: none is under way, or its client has gone */
  json_t *id;                /* of mirror-checkpoint-prepare, until it is answered; owned */
  struct decision *decision; /* owned; NULL: none is under way */
  uint8_t uuid[16];
  uint32_t shards_seen; /* of the gate, at 0 since both are marked */
  bool prepared;
  bool of_hand_over;       /* there is no word: the guest has gone on with it already */
  bool committing;         /* the word says "commit", or there is none, */
  json_t *finish_id;       /* mirror-checkpoint-finish asked for it (owned), or NULL, */
  bool has_flusher;        /* and this thread, to be joined, */
  pthread_t flusher;       /* flushes the disk: */
  _Atomic int flush_errno; /* CHECKPOINT_FLUSHES, then 0 or why it failed */
  int64_t limit_ns;        /* clock_ns() at which it is given up */
};

/* mirror-checkpoint-prepare.  FD is the decision word's, owned by the callee, or -1.  Answers, at
 * once or when it is prepared. */
void checkpoints_prepare (struct mirror *m, struct control_peer *peer, json_t *id, json_t *args,
                          int fd);

/* mirror-checkpoint-finish, mirror-checkpoint-remove, query-mirror-checkpoints, query-mirror-map.
 * Answer. */
void checkpoints_finish (struct mirror *m, struct control_peer *peer, json_t *id);
void checkpoints_remove (struct mirror *m, struct control_peer *peer, json_t *id, const char *name);
void checkpoints_list (struct mirror *m, struct control_peer *peer, json_t *id, uint64_t from);
void checkpoints_map (struct mirror *m, struct control_peer *peer, json_t *id, const char *since);

/* mirror-mark: LENGTH bytes at OFFSET, at most CHECKPOINTS_MARK_MAX, count as changed now, in all
 * that is recorded.  It may wait for the state file, as a guest's write does.  Answers. */
#define CHECKPOINTS_MARK_MAX (64u << 20)
void checkpoints_mark (struct mirror *m, struct control_peer *peer, json_t *id, uint64_t offset,
                       uint64_t length);

/* The disk is its guest's from now on: begin the checkpoint NAME, UUID in place of an earlier one
 * of this name.  When it returns, each mutation that begins is recorded; no mutation is in flight.
 * After 0 the caller owes checkpoints_replaced(), with COMMIT false if a mutation was missed.  0,
 * or -1 with *ERROR.  The checkpoint becomes durable later, once the disk is flushed aside. */
int checkpoints_replace (struct mirror *m, const char *name, const uint8_t uuid[16], char **error);
void checkpoints_replaced (struct mirror *m, bool commit);

/* Wait until such a checkpoint is durable: for what must find it, or must not come between. */
void checkpoints_settle (struct mirror *m);

void checkpoints_peer_closed (struct mirror *m, struct control_peer *peer);
void checkpoints_tick (struct mirror *m);

/* The server stops: what is not decided is given up. */
void checkpoints_shutdown (struct mirror *m);

#endif
