/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Paths of servers that nbdmirror starts: sockets, filters, and what stands for them in a URI.
 */

#ifndef NBDMIRROR_CMD_SERVE_PATHS_H
#define NBDMIRROR_CMD_SERVE_PATHS_H

#include <stdbool.h>

/* Make PATH, the argument of OPTION, absolute; its folder must exist, the last part need not.
 * For text_free(); NULL after an error message. */
char *server_absolute_path (const char *option, const char *path);

/* The same for a socket: short enough, and free.  A stale socket is removed: nbdkit would not. With
 * PRINT nothing is looked at or changed. */
char *server_socket_path (const char *option, const char *path, bool print);

/* Our filter NAME ("mirror"): what the environment variable VARIABLE says, else the one built
 * beside this program, else the installed one, else NAME, for nbdkit to find.  For text_free();
 * NULL after an error message. */
char *server_find_filter (const char *name, const char *variable);

/* The same for our plugin NAME ("image"). */
char *server_find_plugin (const char *name, const char *variable);

/* Percent-encode all but what may stand in a path and a query.  Never NULL.  For
 * text_free(). */
char *server_escape (const char *text);

#endif
