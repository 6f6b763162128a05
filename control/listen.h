/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The listening socket's place in the file system.  Internal to this folder.
 */

#ifndef NBDMIRROR_CONTROL_LISTEN_H
#define NBDMIRROR_CONTROL_LISTEN_H

#include <sys/types.h>

/* Which inode was bound, so that only that one is unlinked. */
struct listen_inode {
  dev_t dev;
  ino_t ino;
};

/* Bind PATH with mode 0600 and listen.  Returns a non-blocking, close-on-exec descriptor, or -1
 * with *ERROR set (the caller frees it with text_free()). */
int control_listen (const char *path, struct listen_inode *inode, char **error);

/* Unlink PATH if it still is that socket. */
void control_unlisten (const char *path, const struct listen_inode *inode);

#endif
