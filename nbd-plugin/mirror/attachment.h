/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The job record: the worker that is attached, its region, what it published, and the requests of
 * users that it has yet to answer.
 *
 *   no region --attach--> worker attached, region marked --detach, lost--> region marked, resumable
 *       ^                     |  cancelled, committed                          |  cancelled
 *       +---------------------+------------------------------------------------+
 *
 * A worker counts until its *process* has ended (pidfd), since until then it may write to the
 * region and to the destination.  A region is merged into a fresh one only after that.
 *
 * Control thread only.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_ATTACHMENT_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_ATTACHMENT_H

#include "nbd-plugin/mirror/filter.h"

void job_init (struct job *j);
void job_free (struct mirror *m);

/* mirror-attach: answers, at once or when the old worker's process has ended.  ARGS were checked.
 */
void job_attach (struct mirror *m, struct control_peer *peer, json_t *id, json_t *args);

/* The worker left (mirror-detach, STATE its last word) or was lost (STATE "detached"). STATE is a
 * constant. */
void job_worker_gone (struct mirror *m, const char *state, const char *reason);

/* The worker that left has no request under way and will not be resumed: the region goes, and its
 * process need not end before the next one attaches. */
void job_worker_finished (struct mirror *m);

/* Forget the region: there is nothing to resume. What a dead session's requests may still hit is
 * kept. */
void job_drop_region (struct mirror *m);

/* Ask the worker.  Answers PEER when the worker does, or with an error. EXECUTE and ARGS (borrowed)
 * go into MIRROR_REQUEST.  The worker must be attached. */
void job_relay (struct mirror *m, struct control_peer *peer, json_t *id, const char *execute,
                json_t *args, int64_t limit_ms);

/* Take the request of that NUMBER out of the list, or the hand-off's (job_take_prepare).  NULL if
 * there is none. */
struct relay *job_take_relay (struct job *j, uint64_t number);
struct relay *job_take_prepare (struct job *j);
void relay_free (struct relay *r);

/* A peer is gone: forget what waits for it. */
void job_peer_closed (struct mirror *m, struct control_peer *peer);

/* Everything that depends on time or on the worker's process. */
void job_tick (struct mirror *m);

/* The lease of a hold that names none: twice the allowed downtime. */
int64_t job_default_lease_ms (const struct job *j);

void job_random_uuid (uint8_t uuid[16]);

/* progress.c: check and keep what the worker publishes.  0, or -1 with *ERROR (caller frees) and
 * nothing kept. */
int job_publish (struct job *j, json_t *args, char **error);

#endif
