/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the status of a job tells of its budget.
 */

#ifndef NBDMIRROR_MIRROR_JOB_BUDGET_STATUS_H
#define NBDMIRROR_MIRROR_JOB_BUDGET_STATUS_H

#include <jansson.h>

struct budget;

/* Add it to O.  B may be NULL: that is told as well, since the filter still has what the worker
 * before this one has told. */
void budget_status_add (json_t *o, const struct budget *b);

#endif
