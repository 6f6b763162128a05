/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * When may the worker say that the job is synchronised?  (urgent.h: sync_epoch, synced_epoch.)
 *
 * While the gate is synchronous, every write waits until it is at the destination.  A write whose
 * time is up before goes on, and makes sync_epoch grow.  So if sync_epoch stays at E, a block can
 * be missing at the destination for two reasons only: it was dirty, or being copied, when E was
 * read; or somebody waits for it right now.  There are two ways to know that no block of the first
 * kind is left:
 *
 *   at rest     E is read, and after that nothing is dirty, busy or in quarantine.
 *   in a pass   E is read while the cursor is at the disk's first block.  The pass copies every
 *               dirty block that it meets.  It does not go past a block that is still busy with a
 *               copy from before (PASS_WAIT), because that block may have been changed before E.
 *               E holds when the cursor has come to the end, what was busy then is acknowledged,
 *               and no block was given back as dirty meanwhile.
 *               A block that turned dirty behind the cursor, or while a copy begun in this pass was
 *               running, was changed after E: its write waits, or made sync_epoch grow.
 *
 * This is plain logic on the region and the pass.  The caller has the engine's lock.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_CATCHUP_H
#define NBDMIRROR_MIRROR_ENGINE_CATCHUP_H

#include <stdbool.h>
#include <stdint.h>

#include "mirror/engine/pass.h"

/* A pass that began at EPOCH.  It is believed only if nothing was given back since. */
struct catchup_mark {
  bool valid;
  uint64_t epoch, given_back;
  uint64_t number; /* the highest number of a busy range at that moment (pass.h) */
};

struct catchup {
  bool on;                   /* the gate is synchronous */
  struct catchup_mark begun; /* the running pass; its number is from when it began */
  struct catchup_mark tail;  /* a pass that has come to the end; its number is from then */
};

/* The gate has become synchronous, as the filter has said, or it no longer is. */
void catchup_set (struct catchup *c, bool on);

/* The cursor is at the first block and the pass is about to look for what to copy. */
void catchup_begin (struct catchup *c, const struct region *r, const struct pass *p);
/* Dirty blocks below busy ranges of up to this number must be waited for (pass_options). */
uint64_t catchup_wait_number (const struct catchup *c);
/* The cursor has come to the end of the disk. */
void catchup_wrapped (struct catchup *c, const struct region *r, const struct pass *p);
/* Something may have been acknowledged: store synced_epoch if E holds. */
void catchup_look (struct catchup *c, struct region *r, const struct pass *p);
/* A session was lost, and with it what the destination had not flushed.  Nothing that was noted or
 * said before counts any more. */
void catchup_lost (struct catchup *c, struct region *r);

/* Is nothing missing at the destination but what somebody waits for? */
bool catchup_synchronised (const struct catchup *c, const struct region *r);

#endif
