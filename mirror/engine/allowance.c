/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What a job may send.  See allowance.h.
 */

#include "config.h"

#include "budget/budget.h"
#include "mirror/engine/allowance.h"
#include "mirror/engine/engine.h"

uint64_t
allowance_wait (struct engine *e, uint64_t now_ns)
{
  if (e->rate_off)
    return 0;
  uint64_t wait = rate_wait (&e->rate, now_ns);
  uint64_t shared = e->options.budget != NULL ? budget_wait (e->options.budget, now_ns) : 0;
  return wait > shared ? wait : shared;
}

void
allowance_take (struct engine *e, uint64_t bytes, uint64_t now_ns)
{
  if (e->rate_off)
    return;
  rate_take (&e->rate, bytes);
  if (e->options.budget != NULL)
    budget_take (e->options.budget, bytes, now_ns);
}

void
allowance_give (struct engine *e, uint64_t bytes)
{
  if (e->rate_off)
    return;
  rate_give (&e->rate, bytes);
  if (e->options.budget != NULL)
    budget_give (e->options.budget, bytes);
}

uint64_t
allowance_rate (const struct engine *e, uint64_t rate)
{
  uint64_t share = e->options.budget != NULL ? budget_share (e->options.budget) : 0;

  return share != 0 && (rate == 0 || share < rate) ? share : rate;
}
