/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * `null:`, a destination that forgets what is written to it: for `copy`, to see how fast a source
 * can be read, and whether it can be read at all.
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_NULL_H
#define NBDMIRROR_MIRROR_ENDPOINT_NULL_H

#include "mirror/endpoint/endpoint.h"

#define ENDPOINT_NULL "null:"

/* As large as OPTS->create_size.  Reads find zeroes.  NULL with *ERRNUM and *ERROR. */
struct endpoint *endpoint_null_open (const struct endpoint_options *opts, int *errnum,
                                     char **error);

#endif
