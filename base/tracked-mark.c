/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See tracked-mark.h.
 */

#include "config.h"

#include <errno.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/tracked-mark.h"

int
tracked_mark_remove (int fd)
{
  if (fremovexattr (fd, TRACKED_MARK_ATTRIBUTE) == 0)
    return fsync (fd);
  /* A block device answers with EPERM: it has no attributes of users. */
  return errno == ENODATA || errno == ENOTSUP || errno == EPERM ? 0 : -1;
}
