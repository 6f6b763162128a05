/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the status of a job tells of its budget.
 */

#include "config.h"

#include "budget/budget.h"
#include "mirror/job/budget-status.h"

void
budget_status_add (json_t *o, const struct budget *b)
{
  if (b == NULL)
    return;
  json_object_set_new (o, "budget", json_string (budget_name (b)));
  json_object_set_new (o, "budget-limit", json_integer ((json_int_t)budget_rate (b)));
  json_object_set_new (o, "budget-share", json_integer ((json_int_t)budget_share (b)));
}
