/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A disk of a repository on another host as a read-only NBD export on a local Unix socket.  Each
 * client that connects there gets an ssh of its own, which a server on the other host ends with.
 */

#ifndef NBDMIRROR_CMD_REPOSITORY_FAR_EXPORT_H
#define NBDMIRROR_CMD_REPOSITORY_FAR_EXPORT_H

#include <limits.h>
#include <sys/types.h>

#include "base/private-socket.h"

struct far_export {
  pid_t pid; /* of the process that listens; it leads a process group, with all that it starts */
  char socket[PATH_MAX];
  struct private_socket temporary; /* the same one, unless the caller has said where */
};

/* Serve the file FILE of the repository PLACE at SOCKET (NULL: in a temporary directory), which
 * exists when this returns.  The caller ends the process.  0, or -1 after a message. */
int far_export_start (struct far_export *x, const char *place, const char *file,
                      const char *socket);

/* The process has ended: remove what was temporary. */
void far_export_tidy (struct far_export *x);

#endif
