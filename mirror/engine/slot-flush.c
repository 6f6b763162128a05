/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * WORK_FLUSH: one request.
 *
 *   state     what is going on                  next
 *   FLUSHING  FLUSH is at the destination       answered: the claims of the turn are released
 *                                               (flush-turns.c); failed: the session is over (R5)
 */

#include "config.h"

#include <errno.h>

#include "mirror/engine/slot-flush.h"

static void
on_flushed (void *opaque, int err)
{
  struct slot *sl = opaque;

  /* To flush again would prove nothing: the server may have dropped the pages (R5). */
  if (err) {
    slot_dest_failed (sl, "flush", err);
    return;
  }
  engine_progress (sl->of->engine);
  engine_flush_done (sl->of->engine);
  slot_end (sl);
}

void
slot_flush_start (struct slot *sl)
{
  slot_begin (sl);
  sl->offset = sl->length = 0;
  if (!sl->of->target->have_flush)
    on_flushed (sl, 0);
  else if (channel_flush (sl->of->dest, on_flushed, sl) == -1)
    slot_dest_failed (sl, "flush", errno);
}
