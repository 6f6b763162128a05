/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * WORK_ASK: one question, about a run that is not claimed.  The answer is only a hint (R8): it may
 * be stale when it arrives, and decides nothing but what to read and what to ask about again.
 *
 *   state   what is going on                             next
 *   ASKING  the source's block status is on its way      answered or failed: engine_hints()
 */

#include "config.h"

#include <errno.h>

#include "mirror/engine/slot-hints.h"

static void
on_hints (void *opaque, int err, const struct endpoint_extent *x, unsigned nr)
{
  struct slot *sl = opaque;
  engine_hints (sl->of->engine, &sl->task, err, x, nr);
  slot_end (sl);
}

void
slot_hints_start (struct slot *sl)
{
  slot_begin (sl);
  if (channel_status (sl->of->source, sl->length, sl->offset, on_hints, sl) == -1)
    on_hints (sl, errno, NULL, 0);
}
