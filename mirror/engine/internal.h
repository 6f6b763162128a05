/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the files of the engine itself share (engine.h):
 *
 *   engine.c       settings, figures, beginning and end of sessions
 *   task.c         what is copied next, and what follows when a task has ended
 *   flush-turns.c  flush turns, samples
 *   urgent.c       the synchronous gate
 *
 * The caller of each function here has the engine's lock.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_INTERNAL_H
#define NBDMIRROR_MIRROR_ENGINE_INTERNAL_H

#include "mirror/engine/engine.h"
#include "mirror/engine/task.h"

/* Wake all copiers, or the one that flushes.  Without a session these do nothing. */
void engine_wake_all (struct engine *e);
void engine_wake_flusher (struct engine *e);

/* Start a flush turn if one is due.  Returns true if the flush is ready to be sent. */
bool engine_flush_step (struct engine *e, uint64_t now);

/* For how long no flush is due, unless somebody asks for one. */
uint64_t engine_flush_due_ns (const struct engine *e, uint64_t now);

/* The flush is being sent. */
void engine_flush_begin (struct engine *e, uint64_t now);

/* Offer the first bytes of DATA, which T has written or found, as a sample of the destination. */
void engine_propose_sample (struct engine *e, const struct engine_task *t, const uint8_t *data,
                            uint64_t length, enum sample_kind kind);

/* Forget the samples offered in SET of the blocks [FIRST, FIRST + COUNT): these blocks are being
 * written again. */
void engine_drop_samples (struct engine *e, unsigned set, uint64_t first, uint64_t count);

/* Blocks in one data request.  Requests are short while guest writes wait behind them. */
uint64_t engine_request_blocks (const struct engine *e);

/* Take in what the guest has posted. */
void engine_urgent_gather (struct engine *e);
/* Do urgent blocks go before the background now? */
bool engine_urgent_turn (const struct engine *e);
/* The next urgent run, of at most MAX blocks.  False if there is none, or if all of them are being
 * copied. */
bool engine_urgent_next (struct engine *e, uint64_t max, struct engine_task *t);
/* T was claimed, urgent or not. */
void engine_urgent_taken (struct engine *e, const struct engine_task *t);
/* T has ended: its blocks are busy no more. */
void engine_urgent_settle (struct engine *e, const struct engine_task *t);
/* A flush has ended. */
void engine_urgent_flushed (struct engine *e);
/* The session is over. */
void engine_urgent_lost (struct engine *e);

#endif
