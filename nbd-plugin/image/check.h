/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * qemu-img check on an image whose server was killed, while nobody has the image open.  What it
 * prints goes to our stderr.
 *
 * A qcow2 image ought to survive a qemu-nbd that is killed with nothing worse than clusters that
 * belong to nobody.  It does not always: of 160 kills of QEMU 7.2's under 16 writers that also zero
 * and trim, two left a cluster that two parts of the disk share, or that is in use and counted as
 * free.  What is written there next goes to the wrong place, and no request fails.
 *
 * END is a time on base/clock.h's clock in ms, by which the functions return.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_IMAGE_CHECK_H
#define NBDMIRROR_NBD_PLUGIN_IMAGE_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "nbd-plugin/image/server.h"

/* Are there errors in it?  Also false where that cannot be found out: the format knows no check, or
 * it takes too long. */
bool check_finds_errors (const struct image_options *o, uint64_t end);

/* Free the clusters that belong to nobody. */
void check_frees_leaks (const struct image_options *o, uint64_t end);

#endif
