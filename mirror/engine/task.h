/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Tasks: what the engine gives copiers to do, and what they say when a task has ended.
 *
 *   engine_next() -> WORK_DATA, WORK_VERIFY, WORK_ZERO   a claimed run of blocks
 *                                                        -> engine_task_done(), or
 *                                                           engine_task_unread()
 *                    WORK_ASK                            -> engine_hints()
 *                    WORK_FLUSH                          -> engine_flush_done()
 *                    WORK_NONE
 *
 * A copier whose session has failed just drops its tasks: engine_session_over() revokes the claims
 * of all of them (R5).  All functions are for any copier's thread.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_TASK_H
#define NBDMIRROR_MIRROR_ENGINE_TASK_H

#include "mirror/engine/engine.h"

enum engine_work {
  WORK_NONE,   /* nothing now: ask again after wait_ns, or when woken */
  WORK_DATA,   /* claimed: read, write */
  WORK_VERIFY, /* claimed: read, write, read back, compare */
  WORK_ZERO,   /* claimed: ask the source's block status, write zeroes */
  WORK_ASK,    /* not claimed: ask the source's block status */
  WORK_FLUSH   /* flush the destination */
};

struct engine_task {
  uint64_t first, count;      /* blocks */
  unsigned set;               /* the claim set of a claimed run */
  uint64_t clean;             /* a bit for each block that is clean, and only sent along */
  bool mixed;                 /* there may be such blocks */
  bool urgent;                /* a guest's write waits for it */
  uint64_t sample;            /* the block of the run that may become a sample, from 0 on */
  uint64_t wait_ns;           /* WORK_NONE */
  uint64_t rest_ns;           /* WORK_NONE: so long there is nothing to copy, maybe to flush */
  bool limited;               /* WORK_NONE: there is work, but the bandwidth limit lets it wait */
  struct latency_reply reply; /* set by the copier before the end: how long its data took */
};

/* What a copier has room for. */
struct engine_room {
  bool flusher;    /* it may be given WORK_FLUSH */
  bool verify;     /* it can take WORK_VERIFY now */
  bool background; /* ordinary tasks */
  bool urgent;     /* urgent tasks */
  bool only_short; /* of each kind only those of at most ENGINE_SHORT_BYTES */
};

/* What comes next? */
enum engine_work engine_next (struct engine *e, const struct engine_room *room,
                              struct engine_task *task);

/* How many bytes of TASK's run are work: all but those that are only sent along. */
uint64_t engine_task_bytes (const struct engine *e, const struct engine_task *task);

/* A claimed task has ended well: every block of it was acknowledged, or was given back by
 * claim_give_back().  DATA is what the destination holds from the task's block `sample` on, LENGTH
 * bytes of it, and KIND how they came there.  It may be NULL, with LENGTH 0. */
void engine_task_done (struct engine *e, const struct engine_task *task, const void *data,
                       uint64_t length, enum sample_kind kind);

/* Something of TASK is being sent, which will be durable when its claims are released (R13). */
void engine_sends (struct engine *e, const struct engine_task *task);

/* A claimed task could not be read at the source, for the reason ERR (errno).  Its blocks are dirty
 * again.  ESHUTDOWN means that the session is ending, which is nobody's fault.  After any
 * other error they are tried again later (unreadable.h). */
void engine_task_unread (struct engine *e, const struct engine_task *task, int err);

/* The answer to WORK_ASK, or ERR. */
void engine_hints (struct engine *e, const struct engine_task *task, int err,
                   const struct endpoint_extent *extents, unsigned nr);

/* The destination has flushed. */
void engine_flush_done (struct engine *e);

/* BYTES that the bandwidth limit was charged for turned out to be zeroes. */
void engine_refund (struct engine *e, uint64_t bytes);

/* The destination has acknowledged something.  Whoever waits for us may go on waiting (urgent.h,
 * progress). */
void engine_progress (struct engine *e);

#endif
