/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the two sides of the control protocol share about sockets: addresses, receiving so that
 * a passed descriptor stays with its line, sending, and strings for JSON.  Internal to this
 * folder.
 */

#ifndef NBDMIRROR_CONTROL_WIRE_H
#define NBDMIRROR_CONTROL_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>
#include <sys/un.h>
#include <jansson.h>

/* Fill in *SA.  0; or -1 with *ERROR set (the caller frees it with text_free()) when PATH does not
 * fit, or is empty. */
int wire_address (const char *path, struct sockaddr_un *sa, char **error);

/* Receive what is there, but nothing beyond the next newline.  So a descriptor that comes with
 * these bytes belongs to their line.  Never waits.  Returns the number of bytes, 0 at the end of
 * the stream, or -1 with errno (EAGAIN: nothing is there).  A descriptor goes to *GOT_FD if that is
 * -1, else it is closed.  *FD_LOST is set if one was sent and could not be taken in, because the
 * table of descriptors is full. */
ssize_t wire_recv (int sock, void *buf, size_t size, int *got_fd, bool *fd_lost);

/* Send what the socket takes now, and PASS_FD (unless -1) with the first byte.  Never waits, and
 * raises no SIGPIPE.  Returns the number of bytes sent, or -1 with errno. */
ssize_t wire_send (int sock, const void *buf, size_t len, int pass_fd);

/* A JSON string of TEXT, which may hold any bytes: what is not UTF-8 turns into '?'. */
json_t *wire_text (const char *text);

/* A JSON string of TEXT, or null where that cannot be said: it is NULL, or not UTF-8. */
json_t *wire_text_or_null (const char *text);

#endif
