/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Copying from standard input to an endpoint, or from an endpoint to standard output: `copy` with
 * `-`.  A stream is read or written once, from its beginning to its end, so there is neither a
 * bitmap nor a second try: whatever fails ends the copy.
 *
 * One thread.  Pieces of a fixed size go round in a ring: several requests of the endpoint are in
 * flight, and the bytes of the stream are read or written in order.
 */

#ifndef NBDMIRROR_MIRROR_JOB_STREAM_H
#define NBDMIRROR_MIRROR_JOB_STREAM_H

#include "mirror/job/copy.h"

#define STREAM_NAME "-"

/* Copy from FD to o->dest, or, with TO_STREAM, from o->source to FD.  JOB_COMPLETED only after the
 * destination's flush succeeded.  *REPORT: a new reference, or NULL. */
enum job_result stream_run (const struct copy_options *o, int fd, bool to_stream, json_t **report);

#endif
