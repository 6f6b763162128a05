/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A server that was started for this process must not outlive it: it would hold the locks of its
 * disk for ever, and the next worker could not open that.  The kernel offers to end a child with
 * the thread that started it, but threads end earlier.  So a small process waits for the end of
 * this one, however it comes, and then ends the server and removes its socket.
 */

#ifndef NBDMIRROR_BASE_CHILD_GUARD_H
#define NBDMIRROR_BASE_CHILD_GUARD_H

#include <sys/types.h>

struct child_guard {
  pid_t pid;    /* 0: there is none */
  int alive_fd; /* it is closed with this process */
};

/* Guard SERVER, a child that nobody has waited for yet, with its SOCKET in the directory DIR.  The
 * strings are copied with the process; "" where there is nothing to remove.  0, or an errno. */
int child_guard_start (struct child_guard *g, pid_t server, const char *socket, const char *dir);

/* The server was ended in order, or is going to be: leave it alone from now on. */
void child_guard_stop (struct child_guard *g);

#endif
