/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A fair share of a budget.  Pure.
 *
 * Nobody gets more than it can use, and what it leaves is for the others: the rest is divided by
 * weight among those who could use more (max-min fairness).
 */

#ifndef NBDMIRROR_BUDGET_SHARE_H
#define NBDMIRROR_BUDGET_SHARE_H

struct share_claim {
  double weight; /* > 0 */
  double demand; /* bytes a second; INFINITY: as much as it can get */
};

/* The share of the claim ME among NR claims on RATE bytes a second. */
double share_of (double rate, unsigned nr, const struct share_claim claims[], unsigned me);

#endif
