/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Do two endpoint names mean the same place?  Copying a disk onto itself helps nobody.
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_SAME_PLACE_H
#define NBDMIRROR_MIRROR_ENDPOINT_SAME_PLACE_H

#include <stdbool.h>

/* The same text, two paths of the same file or block device, or two URIs of one export of one Unix
 * socket.  An export that is reached another way (TCP, a proxy) has other names:
 * mirror/job/attach.c recognises it by the connections that arrive.  A second server of the same
 * file is not recognised. Either may be NULL: then no. */
bool same_place (const char *a, const char *b);

#endif
