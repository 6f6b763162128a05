/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * --sync incremental: only what was changed since a checkpoint is dirty when the job begins.  The
 * filter does that (mirror-attach with "since"), and a copy without a server does it here.
 *
 * The destination must hold, for each block that was not changed since, what the disk held at the
 * checkpoint.  So it stands at the checkpoint, or at any later instant: a mirror or copy that began
 * after the checkpoint was added, and sent everything, is good.  A server of `nbdmirror receive`
 * knows where its disk stands (standing.h).  Others cannot tell.  A sample finds most that are
 * wrong, and proves nothing, so the user must trust it.  What was compared then serves as samples
 * in the region, so that a reconnection to another destination is noticed before anything was
 * flushed (R13).
 */

#ifndef NBDMIRROR_MIRROR_JOB_INCREMENTAL_H
#define NBDMIRROR_MIRROR_JOB_INCREMENTAL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/uuid.h"
#include "control/client.h"
#include "dirty-bitmap/region.h"
#include "mirror/job/found-samples.h"
#include "mirror/job/job.h"

/* What was changed since the checkpoint, and where that comes from. */
struct incremental {
  const struct sync_options *sync;
  struct control_client *control; /* of a live disk, borrowed; or NULL */
  uint64_t *bits;                 /* owned: a bit a block */
  uint64_t size, block_size, nr_blocks;
  struct found_samples *found; /* borrowed: incremental_prove() adds what the destination holds */
  json_t *checkpoints;         /* owned: as standing_list() */
  bool proved; /* the destination stands at the checkpoint, by what its server knows, */
  char from[UUID_TEXT_BYTES]; /* which is this one, or a later one */
};

/* Ask the filter what was changed by now.  JOB_REFUSED or JOB_FAILED with *ERROR (base/text.h): the
 * checkpoint is not there, or inconsistent. */
enum job_result incremental_ask (struct incremental *inc, char **error);

/* The same from the state file sync->state of a server that is stopped.  SOURCE is the disk's path.
 * *LOCK is a descriptor that keeps servers away until it is closed. */
enum job_result incremental_read (struct incremental *inc, const char *source, int *lock,
                                  char **error);

/* Does the destination stand at the checkpoint?  Its server may know (standing.h); else the user
 * trusts it.  Then a sample of what was not changed is compared, until SIGNAL is not 0.  URI: the
 * destination as the user named it, NULL if that is not one word.  MESSAGE as in struct
 * job_options. */
enum job_result
incremental_prove (struct incremental *inc, struct endpoint *source, struct endpoint *dest,
                   const char *uri, const _Atomic int *signal, void *opaque,
                   void (*message) (void *opaque, enum job_message kind, const char *text),
                   char **error);

/* Set what was changed dirty in R, whose blocks may have another size. */
void incremental_fill (const struct incremental *inc, struct region *r);

void incremental_free (struct incremental *inc);

#endif
