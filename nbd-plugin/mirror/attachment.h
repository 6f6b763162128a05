/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The attachment: the worker that is attached to this disk, the region that it works on, and what
 * it published about its job.
 *
 *   no region --attach--> worker attached, region marked --detach, lost--> region marked, resumable
 *       ^                     |  cancelled, committed                          |  cancelled
 *       +---------------------+------------------------------------------------+
 *
 * A worker counts until its *process* has ended (pidfd), since until then it may write to the
 * region and to the destination.  A region is merged into a fresh one only after that.
 *
 * The attachment knows nothing of a hand-off.  What a lost worker means for the hand-off and for
 * the gate is said in participant.h: participant_worker_gone().
 *
 * Control thread only.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_ATTACHMENT_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_ATTACHMENT_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/uuid.h"
#include "control/server.h"
#include "dirty-bitmap/region.h"
#include "nbd-plugin/mirror/process.h"
#include "nbd-plugin/mirror/relay.h"

struct mirror;

/* An answer that waits: to mirror-hold for the drain, to mirror-attach for the old worker's end. */
struct waiting_answer {
  struct control_peer *peer; /* NULL: none waits */
  json_t *id;                /* owned, or NULL */
  json_t *args;              /* owned, or NULL */
  uint64_t generation;       /* of the hold */
  int64_t limit_ns;          /* clock_ns() at which mirror-attach is refused */
};

struct attachment {
  char instance[UUID_TEXT_BYTES]; /* of this filter; told to every worker that attaches */
  struct control_peer *worker;    /* attached, else NULL */
  struct process process;         /* of the last worker */
  struct region *region;          /* being marked; NULL: no job that could be resumed */
  struct region *ghost;           /* blocks that requests of a dropped job may still hit (R12) */
  const char *ended;              /* state while no worker is attached: "idle", "detached" ... */
  json_t *published;              /* by the worker, checked; never NULL */
  char *reason;                   /* the last word of a worker that left, or NULL */
  bool keep_waiters;              /* default for hand-offs, from mirror-attach */
  struct relays relays;           /* users' requests that the worker has yet to answer */
  struct waiting_answer hold;
  struct waiting_answer attach;
  bool was_ready; /* BLOCK_JOB_READY was sent */
};

void attachment_init (struct attachment *a);
void attachment_free (struct mirror *m);

/* mirror-attach: answers, at once or when the old worker's process has ended.  ARGS were
 * checked. */
void attachment_attach (struct mirror *m, struct control_peer *peer, json_t *id, json_t *args);

/* The connection of a worker that is attached though its process has ended, or NULL. */
struct control_peer *attachment_dead_worker (struct attachment *a);

/* The worker left (mirror-detach, STATE its last word) or was lost (STATE "detached").  STATE is a
 * constant, REASON is copied and may be NULL.  False if none was attached. */
bool attachment_lost (struct mirror *m, const char *state, const char *reason);

/* The worker that left has no request under way and will not be resumed: the region goes, and its
 * process need not end before the next one attaches. */
void attachment_finished (struct mirror *m);

/* Forget the region: there is nothing to resume.  What a dead session's requests may still hit is
 * kept. */
void attachment_drop_region (struct mirror *m);

/* Ask the worker, which must be attached.  PEER is answered when the worker answers, or with an
 * error.  EXECUTE and ARGS (borrowed) go into MIRROR_REQUEST. */
void attachment_ask (struct mirror *m, struct control_peer *peer, json_t *id, const char *execute,
                     json_t *args, int64_t limit_ms);

/* A peer is gone that is not the attached worker: forget what waits for it. */
void attachment_peer_closed (struct attachment *a, struct control_peer *peer);

/* Answer what has waited for the drain or for the old worker's end. */
void attachment_tick (struct mirror *m);

/* The lease of a hold that names none, in milliseconds: twice the allowed downtime. */
int64_t attachment_default_lease_ms (const struct attachment *a);

/* worker-progress.c: check and keep what the worker publishes.  0, or -1 with *ERROR (the caller
 * frees it with text_free()) and nothing kept. */
int attachment_publish (struct attachment *a, json_t *args, char **error);

#endif
