/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A measurement of what the guest writes.  See measure.h.
 */

#include "config.h"

#include <stdlib.h>
#include <string.h>

#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/samples.h"
#include "nbd-plugin/mirror/attachment.h"
#include "nbd-plugin/mirror/measure.h"

/* What proves that a destination is that of the job that is left over. */
static void
add_identity (struct region *r, const struct region *job)
{
  samples_copy (r, job);
  bitmap_or (r, REGION_QUARANTINE, job, REGION_CLAIMED_A);
  bitmap_or (r, REGION_QUARANTINE, job, REGION_CLAIMED_B);
  bitmap_or (r, REGION_QUARANTINE, job, REGION_QUARANTINE);
}

void
measure_begin (struct mirror *m, struct control_peer *peer, json_t *id)
{
  struct measure *me = &m->measure;
  struct region_geometry geo;
  uint8_t uuid[16];
  char *error = NULL;

  if (m->job.worker != NULL) {
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
  job_random_uuid (uuid);
  struct region *r = region_create (&geo, uuid, &error);
  if (r == NULL) {
    control_error (peer, id, "GenericError", "%s", error != NULL ? error : "no memory");
    free (error);
    return;
  }
  if (m->job.region != NULL)
    add_identity (r, m->job.region);
  if (tracker_add (&m->tracker, r) == -1) {
    region_free (r);
    control_error (peer, id, "GenericError", "too many regions");
    return;
  }
  me->peer = peer;
  me->region = r;
  control_reply (peer, id,
                 json_pack ("{s:I, s:I, s:b}", "size", (json_int_t)geo.disk_size, "block-size",
                            (json_int_t)geo.block_size, "job", m->job.region != NULL),
                 r->fd);
}

void
measure_end (struct mirror *m)
{
  struct region *r = m->measure.region;

  if (r == NULL)
    return;
  tracker_remove (&m->tracker, r);
  region_free (r);
  memset (&m->measure, 0, sizeof m->measure);
}

void
measure_peer_closed (struct mirror *m, struct control_peer *peer)
{
  if (m->measure.region != NULL && m->measure.peer == peer)
    measure_end (m);
}
