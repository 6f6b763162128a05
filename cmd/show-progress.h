/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The progress line, made from a status object (nbdmirror(1), "status --json").  On a terminal one
 * line that redraws, not wider than the terminal; elsewhere a plain line every few seconds.  It
 * only formats what it is given.
 */

#ifndef NBDMIRROR_CMD_SHOW_PROGRESS_H
#define NBDMIRROR_CMD_SHOW_PROGRESS_H

#include <stdint.h>
#include <stdbool.h>
#include <stdio.h>
#include <jansson.h>

struct progress;

/* Lines go to FP (borrowed).  NAME (copied) starts each line, or NULL. */
struct progress *progress_new (FILE *fp, const char *name);
/* Is it on a terminal? */
bool progress_is_on_terminal (const struct progress *p);
/* Ends a line that is still open on a terminal. */
void progress_free (struct progress *p);

/* Show STATUS.  NOW_MS: any monotonic clock.  May be called as often as wanted: on a terminal it
 * redraws at most ten times a second, elsewhere every PROGRESS_PLAIN_MS and when the state or the
 * pass changed.  No bytes moved for PROGRESS_STALL_MS while copying reads "stalled". */
#define PROGRESS_PLAIN_MS 5000
#define PROGRESS_STALL_MS 10000
void progress_print (struct progress *p, json_t *status, uint64_t now_ms);

/* Before anything else is printed to the same terminal: ends the open line. */
void progress_break (struct progress *p);

/* The text alone, at most WIDTH columns (0: no limit), without newline.  STALLED_MS: for how
 * long no bytes moved.  Caller frees; NULL on ENOMEM.  For tests and `status`. */
char *progress_format (const json_t *status, uint64_t stalled_ms, unsigned width);

#endif
