/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * libaio contexts that are used again.  The end of one takes 10 to 30 ms, since io_destroy() waits
 * for all processors (an RCU grace period); a small job opens and closes half a dozen channels.  So
 * a few that nobody uses are kept until the process ends.
 *
 * Any thread may call these.
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_AIO_POOL_H
#define NBDMIRROR_MIRROR_ENDPOINT_AIO_POOL_H

#include <libaio.h>

/* A context for EVENTS requests, with none in flight and no result to be fetched.  NULL: the system
 * has no more of them. */
io_context_t aio_pool_take (int events);

/* Give CTX back, which was taken for EVENTS requests: all of them have ended, and their results
 * were fetched. */
void aio_pool_give (io_context_t ctx, int events);

#endif
