/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What a dry run found, for people.
 */

#ifndef NBDMIRROR_CMD_SHOW_FORECAST_H
#define NBDMIRROR_CMD_SHOW_FORECAST_H

#include <jansson.h>

/* Print the report of job_dry_run() on stdout. */
void forecast_print (const json_t *report);

#endif
