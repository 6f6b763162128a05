/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The destination's identity.  See identity.h.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/samples.h"
#include "mirror/engine/engine.h"
#include "mirror/engine/identity.h"
#include "mirror/endpoint/blocking.h"

/* Read LENGTH bytes rounded up to the endpoint's minimum block; remember the shortest time. */
static int
timed_read (struct channel *ch, const struct endpoint *ep, void *buf, uint32_t length,
            uint64_t offset, uint64_t *best_ns)
{
  const struct endpoint_info *info = endpoint_info (ep);
  uint64_t n = (length + (uint64_t)info->min_block - 1) / info->min_block * info->min_block;
  if (offset + n > info->size)
    return EINVAL;
  uint64_t start = now_ns ();
  int err = sync_read (ch, buf, (uint32_t)n, offset);
  uint64_t took = now_ns () - start;
  if (took < *best_ns)
    *best_ns = took;
  return err;
}

enum identity
identity_check (struct channel *ch, const struct endpoint *dest, const struct region *r,
                uint64_t *rtt_ns, char **error)
{
  enum identity result = IDENTITY_SAME;
  const struct endpoint_info *info = endpoint_info (dest);
  size_t room = info->min_block > SAMPLE_BYTES ? info->min_block : SAMPLE_BYTES;
  struct sample *s = malloc (sizeof *s);
  uint8_t *buf = NULL;
  unsigned compared = 0;
  int err = 0;
  uint64_t offset = 0;

  *error = NULL;
  *rtt_ns = UINT64_MAX;
  if (s == NULL || posix_memalign ((void **)&buf, 4096, room) != 0) {
    free (s);
    return IDENTITY_UNKNOWN;
  }
  for (unsigned i = 0; i < SAMPLES_MAX && result == IDENTITY_SAME; i++) {
    if (!samples_get (r, i, s) || bitmap_test (r, REGION_QUARANTINE, s->block))
      continue;
    offset = s->block << r->geo.block_shift;
    err = timed_read (ch, dest, buf, s->length, offset, rtt_ns);
    compared++;
    if (err)
      result = IDENTITY_UNKNOWN;
    else if (memcmp (buf, s->data, s->length) != 0)
      result = IDENTITY_OTHER;
  }
  if (compared == 0 && r->geo.disk_size > 0) {
    uint32_t n = r->geo.disk_size < SAMPLE_BYTES ? (uint32_t)r->geo.disk_size : SAMPLE_BYTES;
    err = timed_read (ch, dest, buf, n, 0, rtt_ns);
    if (err)
      result = IDENTITY_UNKNOWN;
  }
  if (*rtt_ns == UINT64_MAX)
    *rtt_ns = 0;
  int n = 0;
  if (result == IDENTITY_UNKNOWN)
    n = asprintf (error, "%s: cannot read at offset %" PRIu64 ": %s", endpoint_name (dest), offset,
                  channel_error (ch) ? channel_error (ch) : strerror (err));
  else if (result == IDENTITY_OTHER)
    n = asprintf (error,
                  "%s is not the destination that this job has been writing to: "
                  "the data at offset %" PRIu64 " is not what was stored there",
                  endpoint_name (dest), offset);
  if (n == -1)
    *error = NULL;
  free (buf);
  free (s);
  return result;
}
