/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See found-samples.h.
 */

#include "config.h"

#include <string.h>

#include "dirty-bitmap/bitmap.h"
#include "mirror/job/found-samples.h"

void
found_samples_add (struct found_samples *f, uint64_t offset, const uint8_t *data, uint32_t length)
{
  if (f->nr == SAMPLES_FOUND)
    return;
  struct sample *s = &f->list[f->nr];
  s->kind = SAMPLE_FOUND;
  s->length = length < SAMPLE_BYTES ? length : SAMPLE_BYTES;
  memcpy (s->data, data, s->length);
  f->offset[f->nr++] = offset;
}

void
found_samples_keep (const struct found_samples *f, struct region *r)
{
  for (unsigned i = 0; i < f->nr; i++) {
    struct sample s = f->list[i];

    s.block = f->offset[i] >> r->geo.block_shift;
    if (f->offset[i] % r->geo.block_size == 0 && s.block < r->geo.nr_blocks
        && s.length <= region_bytes (&r->geo, s.block, 1)
        && !bitmap_test (r, REGION_QUARANTINE, s.block))
      samples_put (r, &s);
  }
}
