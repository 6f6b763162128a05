/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What a job may send.  See allowance.h.
 */

#include "config.h"

#include <stddef.h>

#include "budget/budget.h"
#include "mirror/engine/allowance.h"

void
allowance_init (struct allowance *a, uint64_t rate, struct budget *budget, uint64_t now_ns)
{
  *a = (struct allowance){ .budget = budget };
  rate_init (&a->rate, rate, now_ns);
}

uint64_t
allowance_wait (struct allowance *a, uint64_t now_ns)
{
  if (a->off)
    return 0;
  uint64_t wait = rate_wait (&a->rate, now_ns);
  uint64_t shared = a->budget != NULL ? budget_wait (a->budget, now_ns) : 0;
  return wait > shared ? wait : shared;
}

void
allowance_take (struct allowance *a, uint64_t bytes, uint64_t now_ns)
{
  if (a->off)
    return;
  rate_take (&a->rate, bytes);
  if (a->budget != NULL)
    budget_take (a->budget, bytes, now_ns);
}

void
allowance_give (struct allowance *a, uint64_t bytes)
{
  if (a->off)
    return;
  rate_give (&a->rate, bytes);
  if (a->budget != NULL)
    budget_give (a->budget, bytes);
}

uint64_t
allowance_rate (const struct allowance *a, uint64_t rate)
{
  uint64_t share = a->budget != NULL ? budget_share (a->budget) : 0;

  return share != 0 && (rate == 0 || share < rate) ? share : rate;
}
