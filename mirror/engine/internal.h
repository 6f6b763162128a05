/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the files of the engine share (engine.h):
 *
 *   engine.c         what to copy next, claims, passes, counters
 *   flush.c   flush turns, samples
 *   urgent.c  the synchronous gate
 *
 * All of these are called with the engine's lock held.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_INTERNAL_H
#define NBDMIRROR_MIRROR_ENGINE_INTERNAL_H

#include "mirror/engine/engine.h"

/* Start a flush if one is due.  Returns true if it is now for copier 0 to send. */
bool engine_flush_step (struct engine *e, uint64_t now);

/* Propose the first bytes of DATA, what T has written, as a sample of the destination. */
void engine_propose_sample (struct engine *e, const struct engine_task *t, const uint8_t *data,
                            uint64_t length);

/* Forget the samples proposed in SET of the blocks [FIRST, FIRST + COUNT): they are being written
 * again. */
void engine_drop_samples (struct engine *e, unsigned set, uint64_t first, uint64_t count);

/* Blocks in one data request, as things stand: short ones while guest writes wait behind them. */
uint64_t engine_request_blocks (const struct engine *e);

/* Take in what the guest has posted. */
void engine_urgent_gather (struct engine *e);
/* Are urgent blocks to go before the background now? */
bool engine_urgent_turn (const struct engine *e);
/* The next urgent run.  False if there is none that is not being copied. */
bool engine_urgent_next (struct engine *e, struct engine_task *t);
/* T was claimed, urgent or not. */
void engine_urgent_taken (struct engine *e, const struct engine_task *t);
/* T has ended: its blocks are busy no more. */
void engine_urgent_settle (struct engine *e, const struct engine_task *t);
/* A flush has ended. */
void engine_urgent_flushed (struct engine *e);
/* The session is over. */
void engine_urgent_lost (struct engine *e);

#endif
