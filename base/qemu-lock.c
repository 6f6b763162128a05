/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See qemu-lock.h.
 */

#include "config.h"

#include <fcntl.h>
#include <unistd.h>

#include "base/qemu-lock.h"

#define FIRST 100
#define LENGTH 200

/* Would an exclusive lock of these bytes have to wait? */
static bool
is_locked (int fd, off_t start, off_t length)
{
  struct flock bytes
      = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = start, .l_len = length };

  return fcntl (fd, F_OFD_GETLK, &bytes) == 0 && bytes.l_type != F_UNLCK;
}

bool
qemu_lock_is_held (int fd)
{
  return is_locked (fd, FIRST, LENGTH);
}

bool
qemu_lock_is_written (int fd)
{
  return is_locked (fd, QEMU_LOCK_WRITES, 1);
}

bool
qemu_lock_excludes_writers (int fd)
{
  return is_locked (fd, QEMU_LOCK_WRITES, 1) || is_locked (fd, QEMU_LOCK_NO_WRITERS, 1);
}
