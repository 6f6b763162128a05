/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Does a server that listens also serve?
 */

#ifndef NBDMIRROR_CMD_SERVE_NBDKIT_ANSWERS_H
#define NBDMIRROR_CMD_SERVE_NBDKIT_ANSWERS_H

#include <sys/types.h>

enum nbdkit_answer {
  NBDKIT_ANSWERS, /* or it turns us away, as some filters do */
  NBDKIT_ENDED,   /* the process has ended */
  NBDKIT_SILENT   /* nothing came in time */
};

/* Connect to SOCKET, at which the process SERVER listens, wait at most TIMEOUT_MS for its greeting,
 * and leave before any export is opened.  When this returns, the server has let go of the
 * connection, so that it does not count for a server that takes one only. */
enum nbdkit_answer nbdkit_answers (const char *socket, pid_t server, int timeout_ms);

#endif
