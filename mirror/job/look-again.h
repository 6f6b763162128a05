/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A job goes on, and nothing that it has sent is durable.  Then its destination is recognised only
 * by what was found there, and a few blocks of that (samples.h) another disk may have as well: so
 * many are compared.  In each mode what is clean is as at the source, and what was never visited as
 * in the base.
 */

#ifndef NBDMIRROR_MIRROR_JOB_LOOK_AGAIN_H
#define NBDMIRROR_MIRROR_JOB_LOOK_AGAIN_H

#include "dirty-bitmap/region.h"
#include "mirror/endpoint/endpoint.h"
#include "mirror/engine/session.h"

/* All borrowed. */
struct look_again {
  const struct region *region;
  struct endpoint *source, *base; /* BASE may be NULL */
  const _Atomic int *signal;      /* not 0: stop, with SESSION_SOURCE; or NULL */
};

/* OPAQUE is a struct look_again.  Is DEST, which is open and has no channel, what the job may go on
 * to write to?  NULL; or why not (text_free()), with *PROBLEM: SESSION_REFUSED if it is another one
 * (R13). */
char *look_again (void *opaque, struct endpoint *dest, enum session_problem *problem);

#endif
