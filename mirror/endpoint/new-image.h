/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * An image that a qemu-nbd of ours is to serve, and that is not there yet.
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_NEW_IMAGE_H
#define NBDMIRROR_MIRROR_ENDPOINT_NEW_IMAGE_H

#include <stdbool.h>

#include "mirror/endpoint/endpoint.h"

/* Is the image of OPTS to be made: asked for with `create`, and missing?  It is made then, with
 * qemu-img and of create_size bytes, and *MADE is set.  0, or -1 with *ERRNUM and *ERROR, and then
 * nothing is left there.  Blocks while qemu-img runs. */
int new_image_make (const struct endpoint_options *opts, bool *made, int *errnum, char **error);

#endif
