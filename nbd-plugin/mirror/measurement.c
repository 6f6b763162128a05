/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A measurement of what the guest writes.  See measurement.h.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "base/uuid.h"
#include "dirty-bitmap/claims.h"
#include "dirty-bitmap/samples.h"
#include "nbd-plugin/mirror/filter.h"
#include "nbd-plugin/mirror/measurement.h"

void
measurement_begin (struct mirror *m, struct control_peer *peer, json_t *id)
{
  struct measurement *me = &m->measurement;
  struct region_geometry geo;
  uint8_t uuid[16];
  char *error = NULL;

  if (m->attachment.worker != NULL) {
    control_error (peer, id, "WorkerAttached", "a worker is attached: its status tells the rates");
    return;
  }
  if (me->region != NULL) {
    control_error (peer, id, "Busy", "another measurement is under way");
    return;
  }
  if (!tracker_geometry (&m->tracker, &geo)) {
    control_error (peer, id, "NoDisk",
                   "the disk's size is not known: open an NBD connection to the export first");
    return;
  }
  uuid_make (uuid);
  struct region *r = region_create (&geo, uuid, &error);
  if (r == NULL) {
    control_error (peer, id, "GenericError", "%s", error);
    text_free (error);
    return;
  }
  const struct region *job = m->attachment.region;
  if (job != NULL) { /* what proves that a destination is that of the job that is left over */
    samples_copy (r, job);
    bitmap_or (r, REGION_VISITED, job, REGION_VISITED);
    claims_quarantine_from (r, job);
  }
  if (tracker_add (&m->tracker, r) == -1) {
    region_free (r);
    control_error (peer, id, "GenericError", "too many regions");
    return;
  }
  me->peer = peer;
  me->region = r;
  control_reply (peer, id,
                 json_pack ("{s:I, s:I, s:b}", "size", (json_int_t)geo.disk_size, "block-size",
                            (json_int_t)geo.block_size, "job", job != NULL),
                 r->fd);
}

void
measurement_end (struct mirror *m)
{
  struct region *r = m->measurement.region;

  if (r == NULL)
    return;
  tracker_remove (&m->tracker, r);
  region_free (r);
  memset (&m->measurement, 0, sizeof m->measurement);
}

void
measurement_peer_closed (struct mirror *m, struct control_peer *peer)
{
  if (m->measurement.region != NULL && m->measurement.peer == peer)
    measurement_end (m);
}
