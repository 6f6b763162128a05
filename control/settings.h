/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The arguments of mirror-set.  The filter looks at them before it relays the command, and so does
 * whoever acts on it.
 */

#ifndef NBDMIRROR_CONTROL_SETTINGS_H
#define NBDMIRROR_CONTROL_SETTINGS_H

#include <jansson.h>

#define SETTINGS_MAX_DOWNTIME_MS 86400000 /* a day */
#define SETTINGS_MAX_WRITE_DELAY_MS 10000

/* NULL, or what is wrong with ARGS (a constant text): a value, or that there is none.  Values that
 * are not known here are left to others. */
const char *settings_fault (const json_t *args);
#endif
