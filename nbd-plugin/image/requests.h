/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Requests as libnbd makes them, on a connection that the calling thread has for itself.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_IMAGE_REQUESTS_H
#define NBDMIRROR_NBD_PLUGIN_IMAGE_REQUESTS_H

#include "nbd-plugin/image/image.h"
#include "nbd-plugin/image/log.h"

/* Send R and wait for its end.  0 or an errno. */
int request_send (struct nbd_handle *connection, struct image_request *r);

/* Send a change of the log again.  0 or an errno. */
int request_repeat (struct nbd_handle *connection, const struct change *c);

/* What the log keeps of R, which is a change: with FUA no data, since that is never repeated from
 * the log.  NULL if memory has run out. */
struct change *request_change (const struct image_request *r);

#endif
