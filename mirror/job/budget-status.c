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
  bool any = b != NULL;

  json_object_set_new (o, "budget", any ? json_string (budget_name (b)) : json_null ());
  json_object_set_new (o, "budget-limit",
                       any ? json_integer ((json_int_t)budget_rate (b)) : json_null ());
  json_object_set_new (o, "budget-share",
                       any ? json_integer ((json_int_t)budget_share (b)) : json_null ());
}
