/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Before anything is left out because the destination's base image holds it, both bases are proved
 * to be the same: by the digests of their whole contents (digest/whole.h), which each side computes
 * once and keeps.  `nbdmirror receive --backing` tells its own.  For other servers the user may
 * accept a sample, which finds a wrong base but proves nothing.
 */

#ifndef NBDMIRROR_MIRROR_JOB_BASE_PROOF_H
#define NBDMIRROR_MIRROR_JOB_BASE_PROOF_H

#include <stdatomic.h>
#include <stdbool.h>

#include "mirror/endpoint/endpoint.h"
#include "mirror/job/job.h"

struct base_proof {
  const struct sync_options *sync;
  struct endpoint *base; /* sync->base, opened */
  struct endpoint *dest; /* opened, nothing was written */
  char *const *dest_argv;
  unsigned nr_dest;
  const struct endpoint_options *dest_options; /* its time limits are taken */
  uint64_t size; /* of the disk that is copied: what the destination holds after it is nobody's */
  bool resumed;  /* an earlier worker has written there: a sample would say nothing */
  _Atomic int *signal; /* not 0: stop */
  void *opaque;
  void (*message) (void *opaque, enum job_message kind, const char *text);
};

/* JOB_COMPLETED: it is the same base, or the user trusts that it is.  Else JOB_REFUSED,
 * JOB_DEST_FAILED, JOB_FAILED or JOB_CANCELLED, with *ERROR (the caller frees it with text_free()).
 * Takes as long as the bases are read, on both sides at the same time. */
enum job_result base_prove (const struct base_proof *p, char **error);

#endif
