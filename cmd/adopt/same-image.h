/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Is it the same image that two programs have open?
 */

#ifndef NBDMIRROR_CMD_ADOPT_SAME_IMAGE_H
#define NBDMIRROR_CMD_ADOPT_SAME_IMAGE_H

#include <stdbool.h>
#include <sys/types.h>

/* Has process PID the file or device PATH open?  1, 0, or -1 if that cannot be seen. */
int image_is_open_in (pid_t pid, const char *path);

/* The same of any process that PID has started. */
int image_is_open_below (pid_t pid, const char *path);

/* Does a program hold QEMU's lock for writing to PATH? */
bool image_has_writer (const char *path);

/* Do several programs hold QEMU's lock for writing to PATH, or does any hold a lock that excludes
 * others?  As the kernel's list of locks tells.  BY_SERVER: one such lock of the whole file, as a
 * server with a state file has it, is our server's.  Looks for two seconds: a server that is ending
 * has removed its sockets, and keeps its lock until it has flushed the image. */
bool image_stays_locked (const char *path, bool by_server);

/* Read PATH and the export of the Unix socket SOCKET at the same places, some of them random.  What
 * differs is read again, since a guest may write meanwhile.  If SERVER is not 0, that process must
 * have PATH open itself while it is read from.  0, or -1 with *ERROR (text_free()). */
int image_compare (const char *path, const char *socket, pid_t server, char **error);

/* Read a byte from the export of the Unix socket SOCKET.  0, or -1 with *ERROR. */
int image_wake (const char *socket, char **error);

#endif
