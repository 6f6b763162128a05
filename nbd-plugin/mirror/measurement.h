/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A measurement: somebody wants to know what the guest writes, without a job (mirror --dry-run).
 * It has a region of its own, empty at first, in which every mutation is marked beside the job's.
 * It touches no job's state.  It ends when its connection closes, or when a worker attaches, whose
 * own figures are better.
 *
 * Control thread only.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_MEASUREMENT_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_MEASUREMENT_H

#include <jansson.h>

#include "control/server.h"
#include "dirty-bitmap/region.h"

struct mirror;

struct measurement {
  struct control_peer *peer;
  struct region *region; /* NULL: none is under way */
};

/* mirror-measure: answers PEER. */
void measurement_begin (struct mirror *m, struct control_peer *peer, json_t *id);

/* A peer is gone. */
void measurement_peer_closed (struct mirror *m, struct control_peer *peer);

/* End it, if there is one. */
void measurement_end (struct mirror *m);

#endif
