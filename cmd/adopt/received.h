/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The server of `nbdmirror receive`, seen through its NBD socket: it has no control socket.
 */

#ifndef NBDMIRROR_CMD_ADOPT_RECEIVED_H
#define NBDMIRROR_CMD_ADOPT_RECEIVED_H

#include <stdbool.h>
#include <sys/types.h>

/* Does an NBD server listen at the socket PATH?  It speaks first.  Takes up to two seconds. */
bool received_speaks_nbd (const char *path);

/* The process that listens at the socket PATH.  0: nobody, or it cannot be seen.  Takes up to two
 * seconds. */
pid_t received_listener (const char *path);

/* The control socket of the server PID, where its disk is tracked (`receive --control`).  For
 * text_free(); NULL: it is not. */
char *received_control (pid_t pid);

/* The process that has started PID; 0: it cannot be seen. */
pid_t received_parent (pid_t pid);

/* The `nbdmirror receive` whose server the process PID is, and which would start that anew; PID
 * itself if there is none. */
pid_t received_keeper (pid_t pid);

#endif
