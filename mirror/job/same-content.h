/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Is the plain file below an export the disk that the export shows?
 */

#ifndef NBDMIRROR_MIRROR_JOB_SAME_CONTENT_H
#define NBDMIRROR_MIRROR_JOB_SAME_CONTENT_H

#include <stdbool.h>

#include "mirror/endpoint/endpoint.h"

/* Do A and B have the same size, and the same contents at some places?  The guest may write between
 * two reads, so a difference counts only if it stays.  False as well if either cannot be read. */
bool same_content (struct endpoint *a, struct endpoint *b);

#endif
