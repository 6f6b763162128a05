/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the two kinds of `nbdmirror verify` share: of two disks (verify.c), and of a live copy
 * (verify-live.c).
 */

#ifndef NBDMIRROR_CMD_VERIFY_H
#define NBDMIRROR_CMD_VERIFY_H

#include <stdbool.h>

/* Verify the live copy of the job at CONTROL.  Returns an exit status. */
int verify_live (const char *control, bool json, bool quiet);

#endif
