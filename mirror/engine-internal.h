/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the files of the engine share (engine.h):
 *
 *   engine.c         what to copy next, claims, passes, counters
 *   engine-flush.c   flush turns, samples
 *
 * All of these are called with the engine's lock held.
 */

#ifndef NBDMIRROR_ENGINE_INTERNAL_H
#define NBDMIRROR_ENGINE_INTERNAL_H

#include "mirror/engine.h"

/* Start a flush if one is due.  Returns true if it is now for copier 0 to send. */
bool engine_flush_step (struct engine *e, uint64_t now);

/* Propose the first bytes of DATA, what T has written, as a sample of the destination. */
void engine_propose_sample (struct engine *e, const struct engine_task *t, const uint8_t *data,
                            uint64_t length);

/* Forget the samples proposed in SET of the blocks [FIRST, FIRST + COUNT): they are being written again. */
void engine_drop_samples (struct engine *e, unsigned set, uint64_t first, uint64_t count);

#endif
