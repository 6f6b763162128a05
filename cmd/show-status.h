/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A status object (nbdmirror(1), STATUS FIELDS) as lines for people.
 */

#ifndef NBDMIRROR_CMD_SHOW_STATUS_H
#define NBDMIRROR_CMD_SHOW_STATUS_H

#include <jansson.h>

/* Print STATUS, of the disk whose control socket is CONTROL, to standard output. */
void show_status (const json_t *status, const char *control);

#endif
