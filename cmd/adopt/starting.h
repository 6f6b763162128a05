/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * CONTROL.starting: a file that is locked while a server of ours is started at CONTROL, and while
 * it runs.  Whoever starts one passes the descriptor on, to `serve` and so to nbdkit, and the
 * kernel unlocks the file at the end of the last of them.  So a run after one that was killed finds
 * the server that is about to come, and waits for it: else it would come beside a guest that has
 * left.
 */

#ifndef NBDMIRROR_CMD_ADOPT_STARTING_H
#define NBDMIRROR_CMD_ADOPT_STARTING_H

#include <jansson.h>

/* The locked descriptor, for child_start() and close(); or -1, if there is none: then the server
 * starts without it. */
int starting_begin (const char *control);

/* Return when the server that somebody is starting at CONTROL listens, or none is being started, or
 * it ends again (served_ending).  Takes as long as `serve` gives a server to start. */
void starting_wait (const char *control, const json_t *record);

/* There is nothing more to wait for: remove the file. */
void starting_forget (const char *control);

#endif
