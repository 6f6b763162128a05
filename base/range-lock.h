/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Locks of byte ranges of a file that belong to the open file description: whoever inherits the
 * descriptor holds the lock too, and it lasts until the last copy is closed.  LENGTH 0 is up to the
 * end, however far the file grows.  Any thread may call these functions.
 */

#ifndef NBDMIRROR_BASE_RANGE_LOCK_H
#define NBDMIRROR_BASE_RANGE_LOCK_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <unistd.h>

static inline struct flock
range_of (off_t first, off_t length)
{
  return (
      struct flock){ .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = first, .l_len = length };
}

/* Take an exclusive lock, which needs a descriptor that can write.  False with errno, without
 * waiting; range_is_taken() tells of it. */
static inline bool
range_lock (int fd, off_t first, off_t length)
{
  struct flock range = range_of (first, length);

  return fcntl (fd, F_OFD_SETLK, &range) == 0;
}

/* Is ERRNUM, of range_lock(), because somebody else has a part of it? */
static inline bool
range_is_taken (int errnum)
{
  return errnum == EAGAIN || errnum == EACCES;
}

/* Does somebody else have a lock of a part of it, of whatever kind? */
static inline bool
range_is_locked (int fd, off_t first, off_t length)
{
  struct flock range = range_of (first, length);

  return fcntl (fd, F_OFD_GETLK, &range) == 0 && range.l_type != F_UNLCK;
}

#endif
