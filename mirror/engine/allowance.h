/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What a job may send: as much as its own bandwidth limit (rate.h) and its budget (budget/budget.h)
 * both allow.  Callers serialise access, but for allowance_rate().
 */

#ifndef NBDMIRROR_MIRROR_ENGINE_ALLOWANCE_H
#define NBDMIRROR_MIRROR_ENGINE_ALLOWANCE_H

#include <stdbool.h>

#include "mirror/engine/rate.h"

struct budget;

struct allowance {
  struct rate_limit rate;
  struct budget *budget; /* borrowed, or NULL.  Constant */
  bool off;              /* the user lets the last phase ignore both */
};

void allowance_init (struct allowance *a, uint64_t rate, struct budget *budget, uint64_t now_ns);
/* Nanoseconds until a request may start; 0: now. */
uint64_t allowance_wait (struct allowance *a, uint64_t now_ns);
/* Pay for BYTES.  Call only after allowance_wait() said 0. */
void allowance_take (struct allowance *a, uint64_t bytes, uint64_t now_ns);
/* Give back what was paid for and not sent. */
void allowance_give (struct allowance *a, uint64_t bytes);
/* The lower one of the limit RATE and of the job's share, bytes a second; 0: there is none.  Any
 * thread. */
uint64_t allowance_rate (const struct allowance *a, uint64_t rate);

#endif
