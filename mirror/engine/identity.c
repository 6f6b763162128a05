/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The destination's identity.  See identity.h.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"
#include "dirty-bitmap/bitmap.h"
#include "dirty-bitmap/samples.h"
#include "mirror/endpoint/blocking.h"
#include "mirror/endpoint/buffers.h"
#include "mirror/engine/identity.h"

/* Read LENGTH bytes rounded up to the endpoint's minimum block; remember the shortest time. */
static int
timed_read (struct channel *ch, const struct endpoint *ep, void *buf, uint32_t length,
            uint64_t offset, uint64_t *best_ns)
{
  const struct endpoint_info *info = endpoint_info (ep);
  uint64_t n = (length + (uint64_t)info->min_block - 1) / info->min_block * info->min_block;
  if (offset + n > info->size)
    return EINVAL;
  uint64_t start = clock_ns ();
  int err = sync_read (ch, buf, (uint32_t)n, offset);
  uint64_t took = clock_ns () - start;
  if (took < *best_ns)
    *best_ns = took;
  return err;
}

/* Compare all samples that can be compared.  *OFFSET and *ERR say where it ended and why. */
static enum identity
compare_samples (struct channel *ch, const struct endpoint *dest, const struct region *r,
                 struct sample *s, uint8_t *buf, uint64_t *rtt_ns, uint64_t *offset, int *err)
{
  unsigned compared = 0;

  for (unsigned i = 0; i < SAMPLES_MAX; i++) {
    if (!samples_get (r, i, s) || bitmap_test (r, REGION_QUARANTINE, s->block))
      continue;
    *offset = s->block << r->geo.block_shift;
    *err = timed_read (ch, dest, buf, s->length, *offset, rtt_ns);
    if (*err)
      return IDENTITY_UNKNOWN;
    if (memcmp (buf, s->data, s->length) != 0)
      return IDENTITY_OTHER;
    compared++;
  }
  if (compared > 0 || r->geo.disk_size == 0)
    return IDENTITY_SAME;
  *offset = 0;
  *err = timed_read (ch, dest, buf,
                     r->geo.disk_size < SAMPLE_BYTES ? (uint32_t)r->geo.disk_size : SAMPLE_BYTES, 0,
                     rtt_ns);
  return *err ? IDENTITY_UNKNOWN : IDENTITY_SAME;
}

enum identity
identity_check (struct channel *ch, const struct endpoint *dest, const struct region *r,
                uint64_t *rtt_ns, char **error)
{
  const struct endpoint_info *info = endpoint_info (dest);
  size_t room = info->min_block > SAMPLE_BYTES ? info->min_block : SAMPLE_BYTES;
  enum identity result = IDENTITY_UNKNOWN;
  struct sample *s = malloc (sizeof *s);
  uint8_t *buf = buffers_new (room);
  uint64_t offset = 0;
  int err = ENOMEM;

  *error = NULL;
  *rtt_ns = UINT64_MAX;
  if (s != NULL && buf != NULL)
    result = compare_samples (ch, dest, r, s, buf, rtt_ns, &offset, &err);
  if (*rtt_ns == UINT64_MAX)
    *rtt_ns = 0;
  if (result == IDENTITY_UNKNOWN)
    text_error (error, "%s: cannot read at offset %" PRIu64 ": %s", endpoint_name (dest), offset,
                channel_error (ch) ? channel_error (ch) : strerror (err));
  else if (result == IDENTITY_OTHER)
    text_error (error,
                "%s is not the destination that this job has been writing to: "
                "the data at offset %" PRIu64 " is not what was stored there",
                endpoint_name (dest), offset);
  free (buf);
  free (s);
  return result;
}
