/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The locks that QEMU and its tools put on an image's file.  They are shared locks of single bytes,
 * whose places tell what the holder does (QEMU's block/file-posix.c): byte 100 + N says that it
 * makes use of permission N, byte 200 + N that nobody else may.  Permission 1 is to write.  A
 * holder that was told `locking=off` has none, and on some network file systems there are none.
 * Any thread may call these functions.
 */

#ifndef NBDMIRROR_BASE_QEMU_LOCK_H
#define NBDMIRROR_BASE_QEMU_LOCK_H

#include <stdbool.h>

#define QEMU_LOCK_WRITES 101     /* the holder writes */
#define QEMU_LOCK_NO_WRITERS 201 /* nobody else may write */

/* Does another program hold any of these locks on FD's file?  It has the image open, then. */
bool qemu_lock_is_held (int fd);

/* Does another program hold the first one above? */
bool qemu_lock_is_written (int fd);

/* Does another program hold one of the two above? */
bool qemu_lock_excludes_writers (int fd);

#endif
