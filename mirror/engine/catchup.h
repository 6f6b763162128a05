/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * When may the worker say that the job is synchronised?  (urgent.h: sync_epoch, synced_epoch.)
 *
 * While the gate is synchronous every write waits until it is at the destination; one that does not
 * (its time was up) makes sync_epoch grow.  So if sync_epoch stays at E, a block can only be
 * missing at the destination because it was dirty, or being copied, when E was read; or because
 * somebody waits for it right now.  Two ways to know that none of the first kind is left:
 *
 *   at rest     E is read; then nothing is dirty, busy or in quarantine.
 *   in a pass   E is read while the cursor is at the disk's first block.  The pass copies every
 * dirty block it meets; it does not go past one that is still busy with a copy from before
 * (PASS_WAIT), for that one may have been changed before E.  When the cursor has come to the end,
 * and what was busy then is acknowledged, and no block was given back as dirty meanwhile, E holds.
 *               A block that turned dirty behind the cursor, or while a copy begun in this pass was
 *               running, was changed after E: its write waits, or made sync_epoch grow.
 *
 * Plain logic on the region and the pass; the caller has the engine's lock.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_CATCHUP_H
#define NBDMIRROR_MIRROR_ENGINE_CATCHUP_H

#include <stdbool.h>
#include <stdint.h>

#include "mirror/engine/pass.h"

/* A pass that began at EPOCH, and is to be believed while nothing has been given back since. */
struct catchup_mark {
  bool valid;
  uint64_t epoch, given_back;
  uint64_t number; /* of the last range that was busy then */
};

struct catchup {
  bool on;                   /* the gate is synchronous */
  struct catchup_mark begun; /* the running pass; number: busy when it began */
  struct catchup_mark tail;  /* a pass that came to the end; number: busy when it did */
};

/* The gate has become synchronous (the filter has said so), or is so no longer. */
void catchup_set (struct catchup *c, bool on);

/* The cursor is at the first block and the pass is about to look for what to copy. */
void catchup_begin (struct catchup *c, const struct region *r, const struct pass *p);
/* Dirty blocks below busy ranges of up to this number must be waited for (pass_options). */
uint64_t catchup_wait_number (const struct catchup *c);
/* The cursor has come to the end of the disk. */
void catchup_wrapped (struct catchup *c, const struct region *r, const struct pass *p);
/* Something was acknowledged, or may have been: store synced_epoch if it holds. */
void catchup_look (struct catchup *c, struct region *r, const struct pass *p);
/* A session was lost, and with it what the destination had not flushed: nothing that was noted or
 * said counts. */
void catchup_lost (struct catchup *c, struct region *r);

/* Is nothing missing at the destination but what somebody waits for? */
bool catchup_synchronised (const struct catchup *c, const struct region *r);

#endif
