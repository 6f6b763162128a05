/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See qemu-lock.h.
 */

#include "config.h"

#include "base/qemu-lock.h"
#include "base/range-lock.h"

#define FIRST 100
#define LENGTH 200

bool
qemu_lock_is_held (int fd)
{
  return range_is_locked (fd, FIRST, LENGTH);
}

bool
qemu_lock_is_written (int fd)
{
  return range_is_locked (fd, QEMU_LOCK_WRITES, 1);
}

bool
qemu_lock_excludes_writers (int fd)
{
  return range_is_locked (fd, QEMU_LOCK_WRITES, 1) || range_is_locked (fd, QEMU_LOCK_NO_WRITERS, 1);
}
