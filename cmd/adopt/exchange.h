/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A guest's raw node on top of the connection to our server, as libvirt makes it.  That node stays,
 * since libvirt knows it by its name, and the node below it is exchanged (blockdev-reopen): QEMU
 * lets the guest's requests end for that moment.
 *
 * The image is to have the name that the connection had, and that name is free only when the
 * connection is gone:
 *
 *   1. the image is opened under a name of ours, without QEMU's lock, and put below the raw node
 *   2. the connection is removed
 *   3. the image is opened under the connection's name, with the lock, and put there instead
 *
 * A name that QEMU had made up is not kept: then step 1 is all, and it takes the lock.
 *
 * RECORD is CONTROL.adopted, with two names of nodes: "kept", the raw one, and "below", what was
 * below it, or null.
 */

#ifndef NBDMIRROR_CMD_ADOPT_EXCHANGE_H
#define NBDMIRROR_CMD_ADOPT_EXCHANGE_H

#include <stdbool.h>
#include <jansson.h>

#include "cmd/adopt/guest-disk.h"
#include "cmd/adopt/names.h"
#include "cmd/migrate/machine.h"

/* Note in RECORD that D's node is kept, and BELOW is exchanged.  DISCARD is NULL where the raw
 * node's is to stay as it is. */
void exchange_note (json_t *record, const struct guest_disk *d, const struct image_node *below,
                    const char *discard);

/* The name of the node that RECORD keeps; NULL: it keeps none. */
const char *exchange_kept (const json_t *record);

/* *AWAY: has the kept node left the server?  0, or -1 with *ERROR (text_free()), as below. */
int exchange_is_away (struct machine *v, const struct adopt_names *names, const json_t *record,
                      bool *away, char **error);

/* Put it onto a raw image, beginning with the step at which an earlier run was killed. */
int exchange_for_image (struct machine *v, const struct adopt_names *names, const json_t *record,
                        char **error);

/* Put it onto NODE. */
int exchange_for (struct machine *v, const json_t *record, const char *node, char **error);

#endif
