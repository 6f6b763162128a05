/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A measurement: somebody wants to know what the guest writes, without a job (mirror --dry-run). It
 * has a region of its own, empty at first, in which every mutation is marked beside the job's; no
 * job's state is touched by it, and it ends when its connection closes or a worker attaches.
 *
 * Control thread only.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_MIRROR_MEASURE_H
#define NBDMIRROR_NBD_PLUGIN_MIRROR_MEASURE_H

#include "nbd-plugin/mirror/filter.h"

/* mirror-measure: answers PEER. */
void measure_begin (struct mirror *m, struct control_peer *peer, json_t *id);

/* A peer is gone. */
void measure_peer_closed (struct mirror *m, struct control_peer *peer);

/* End it, if there is one. */
void measure_end (struct mirror *m);

#endif
