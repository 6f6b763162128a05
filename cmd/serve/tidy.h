/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdkit leaves its socket and its pid file behind.  A small child process waits for the server's
 * end, however it comes, and removes them.
 */

#ifndef NBDMIRROR_CMD_SERVE_TIDY_H
#define NBDMIRROR_CMD_SERVE_TIDY_H

#include <stdbool.h>
#include <sys/types.h>

#define TIDY_PATHS_MAX 3

struct tidy_path {
  const char *path; /* absolute; NULL: none */
  bool is_socket;   /* else a file that holds the server's process id */
  bool is_bound;    /* a socket that stands there already, and certainly is the server's */
};

/* Start the child that removes PATHS when process SERVER has ended.  It keeps none of our
 * descriptors but 0 to 2, which it turns to /dev/null.  0, or -1 with errno. */
int tidy_start (pid_t server, const struct tidy_path paths[TIDY_PATHS_MAX]);

/* SERVER has ended: remove what is left now. */
void tidy_now (pid_t server, const struct tidy_path paths[TIDY_PATHS_MAX]);

/* What stands at PATH? */
enum tidy_socket { TIDY_ABSENT, TIDY_STALE, TIDY_IN_USE, TIDY_NO_SOCKET };
enum tidy_socket tidy_look (const char *path);

/* Has SERVER bound a socket to PATH, and not closed it?  Nobody is connected to, which an NBD
 * server would notice.  Where /proc does not tell, it counts as its own. */
bool tidy_has_bound (pid_t server, const char *path);

#endif
