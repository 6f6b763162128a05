/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * How far a comparison of disks is: a line on standard error, which redraws itself on a terminal.
 */

#ifndef NBDMIRROR_CMD_VERIFY_METER_H
#define NBDMIRROR_CMD_VERIFY_METER_H

#include <stdbool.h>
#include <stdint.h>

struct verify_meter {
  bool show, terminal;
  uint64_t start_ms, last_ms;
};

/* Begin now.  Without SHOW nothing is printed. */
void verify_meter_begin (struct verify_meter *m, bool show);
/* Show that DONE of SIZE bytes are done.  May be called as often as wanted. */
void verify_meter_show (struct verify_meter *m, uint64_t done, uint64_t size);
/* End the line. */
void verify_meter_end (const struct verify_meter *m);

#endif
