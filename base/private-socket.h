/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A listening Unix socket in a private directory (private-dir.h), for a program that this process
 * starts.  What a killed process has left is removed when the next one is made.
 */

#ifndef NBDMIRROR_BASE_PRIVATE_SOCKET_H
#define NBDMIRROR_BASE_PRIVATE_SOCKET_H

#include "base/private-dir.h"

/* All zero: there is none. */
struct private_socket {
  char dir[PRIVATE_DIR_SIZE]; /* "": none */
  char path[PRIVATE_DIR_SIZE + 8];
  int lock; /* of the directory, closed on exec */
};

/* Make one.  The descriptor that listens, closed on exec; or -1 with errno, and S is none. */
int private_socket_listen (struct private_socket *s);

/* Remove it, if there is one.  The descriptor stays.  errno stays as it was. */
void private_socket_remove (struct private_socket *s);

#endif
