/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A fair share of a budget.  See share.h.
 */

#include "config.h"

#include <stdbool.h>

#include "budget/share.h"

/* Bytes a second for each unit of weight, once those who demand less than that for themselves have
 * it: LEVEL is that of the round before. */
static double
next_level (double rate, unsigned nr, const struct share_claim claims[], double level)
{
  double left = rate, weight = 0;

  for (unsigned i = 0; i < nr; i++)
    if (claims[i].demand < level * claims[i].weight)
      left -= claims[i].demand;
    else
      weight += claims[i].weight;
  return weight > 0 ? left / weight : level;
}

double
share_of (double rate, unsigned nr, const struct share_claim claims[], unsigned me)
{
  double level = 0;

  /* The level only rises, and stays when nobody more is content: after NR rounds at the latest. */
  for (unsigned round = 0; round <= nr; round++) {
    double next = next_level (rate, nr, claims, level);
    if (next <= level)
      break;
    level = next;
  }
  double most = level * claims[me].weight;
  return claims[me].demand < most ? claims[me].demand : most;
}
