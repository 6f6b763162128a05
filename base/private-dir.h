/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A directory of our own in /tmp, for sockets and files that live as long as a process.  One that a
 * killed process has left is removed when the next one of its kind is made.
 *
 * Each is locked (flock).  The lock belongs to the open file description, which child processes may
 * inherit.  So a directory that can be locked is in use by nobody any more.
 */

#ifndef NBDMIRROR_BASE_PRIVATE_DIR_H
#define NBDMIRROR_BASE_PRIVATE_DIR_H

#include <stdbool.h>

#define PRIVATE_DIR_SIZE 40

struct private_dir_kind {
  const char *prefix; /* of its name, "nbdmirror-…-" */
  /* Nobody has locked the directory PATH, which is open as FD: remove the files in it that are
   * ours.  False: it is in use all the same. */
  bool (*clear) (int fd, const char *path);
};

/* Make one, and remove what is left over.  The descriptor that locks it, which is closed on exec;
 * or -1 with errno. */
int private_dir_make (const struct private_dir_kind *kind, char path[PRIVATE_DIR_SIZE]);

/* For clear(): unlink the files in the directory FD whose names are ours. */
void private_dir_unlink (int fd, bool (*is_ours) (const char *name));

#endif
