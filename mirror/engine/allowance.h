/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What a job may send: as much as its own bandwidth limit (rate.h) and its budget (budget/budget.h)
 * both allow.  All but allowance_rate() need the engine's lock.
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_ALLOWANCE_H
#define NBDMIRROR_MIRROR_ENGINE_ALLOWANCE_H

#include <stdint.h>

struct engine;

/* Nanoseconds until a request may start; 0: now. */
uint64_t allowance_wait (struct engine *e, uint64_t now_ns);
/* Pay for BYTES.  Call only after allowance_wait() said 0. */
void allowance_take (struct engine *e, uint64_t bytes, uint64_t now_ns);
/* Give back what was paid for and not sent. */
void allowance_give (struct engine *e, uint64_t bytes);
/* The lower one of the limit RATE and of the job's share, bytes a second; 0: there is none.  Any
 * thread. */
uint64_t allowance_rate (const struct engine *e, uint64_t rate);

#endif
