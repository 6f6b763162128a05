/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What a guest's write waits for after it was done locally: the filter's pace, as the worker wants
 * it.
 *
 *   open          nothing
 *   throttled     a token bucket for blocks that turn dirty
 *   synchronous   until the write has reached the destination
 *
 * Two ask for it: the convergence policy (job_gate_set), and the user (set synchronous=on), who
 * goes before. While the job is paused or without a destination nobody is to wait for it, so the
 * gate is open then, and comes back by itself.  Holding and fencing are another matter (final.c).
 *
 * Everything here is the job's thread's.
 */

#ifndef NBDMIRROR_MIRROR_JOB_GATE_CONTROL_H
#define NBDMIRROR_MIRROR_JOB_GATE_CONTROL_H

#include <stdbool.h>
#include <stdint.h>

struct job;

enum job_gate { JOB_GATE_OPEN, JOB_GATE_THROTTLED, JOB_GATE_SYNCHRONOUS };

/* One for each job, in struct job; zero at first. */
struct job_gate_state {
  enum job_gate wanted; /* by the policy */
  uint64_t wanted_limit;
  bool by_hand; /* synchronous=on */
  uint64_t max_write_delay_ms;

  enum job_gate now;        /* what the filter was told last, successfully */
  uint64_t limit, delay_ms; /* with it; delay_ms 0: it was told nothing yet */
  uint64_t retry_ns;        /* it refused: not before then again */
  bool complained;
};

/* The policy wants MODE; DIRTY_LIMIT in bytes a second counts for JOB_GATE_THROTTLED only.  Tells
 * the filter if that changes anything.  0, or -1 if the filter could not be told, which was said to
 * the user once: it is tried again by job_gate_update(). */
int job_gate_set (struct job *j, enum job_gate mode, uint64_t dirty_limit);

/* The user wants it synchronous, or no longer does.  Returns as job_gate_set(). */
int job_gate_by_hand (struct job *j, bool on);

/* Tell the filter if the job's state asks for it.  Call often. Returns as job_gate_set(). */
int job_gate_update (struct job *j);

/* The job is over: nobody waits for it any more.  Before its session is ended. */
void job_gate_end (struct job *j);

/* What the filter does now. */
enum job_gate job_gate_now (const struct job *j);

/* Has every write that the guest was told of reached the destination?  (The filter's own answer is
 * the one that counts.) */
bool job_gate_synchronised (const struct job *j);

/* "open", "throttled", "synchronous": constants. */
const char *job_gate_name (enum job_gate mode);

#endif
