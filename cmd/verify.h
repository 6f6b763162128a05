/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the two kinds of `nbdmirror verify` share: of two disks (verify.c), and of a live copy
 * (verify-live.c).
 */

#ifndef NBDMIRROR_CMD_VERIFY_H
#define NBDMIRROR_CMD_VERIFY_H

#include <stdbool.h>
#include <stdint.h>

struct verify_meter {
  bool show, terminal;
  uint64_t start_ms, last_ms;
};

/* The progress goes to standard error: on a terminal as one line that redraws. */
void verify_meter_begin (struct verify_meter *m, bool show);
/* Show that DONE of SIZE bytes are done.  May be called as often as wanted. */
void verify_meter_show (struct verify_meter *m, uint64_t done, uint64_t size);
/* End the line. */
void verify_meter_end (const struct verify_meter *m);

/* Verify the live copy of the job at CONTROL.  Returns an exit status. */
int verify_live (const char *control, bool json, bool quiet);

#endif
