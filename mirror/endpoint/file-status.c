/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Where a local file has data, and where holes.  Holes of a regular file read as zero, always: that
 * is more than NBD's HOLE says.
 */

#include "config.h"

#include <errno.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "mirror/endpoint/file.h"

/* From POS to TO is what lseek() calls a hole, which includes room that was set aside for the file
 * and never written (fallocate()).  FIEMAP tells the two apart where the file system has it. False:
 * there is no more room in OP. */
static bool
add_zeroes (const struct file_endpoint *fep, struct op *op, uint64_t pos, uint64_t to)
{
  while (pos < to) {
    union {
      struct fiemap map;
      char room[sizeof (struct fiemap) + sizeof (struct fiemap_extent)];
    } u = { .map = { .fm_start = pos, .fm_length = to - pos, .fm_extent_count = 1 } };
    const struct fiemap_extent *x = u.map.fm_extents;
    bool any = ioctl (fep->fd, FS_IOC_FIEMAP, &u.map) == 0 && u.map.fm_mapped_extents == 1
               && x->fe_logical + x->fe_length > pos && x->fe_logical < to;
    uint64_t begin = !any ? to : x->fe_logical > pos ? x->fe_logical : pos;
    uint64_t end = !any                                ? to
                   : x->fe_logical + x->fe_length < to ? x->fe_logical + x->fe_length
                                                       : to;

    if (begin > pos
        && !op_add_extent (op, (struct endpoint_extent){ .length = begin - pos, .zero = true }))
      return false;
    if (end > begin
        && !op_add_extent (
            op, (struct endpoint_extent){ .length = end - begin, .zero = true, .allocated = true }))
      return false;
    pos = end;
  }
  return true;
}

int
file_status (const struct file_endpoint *fep, struct op *op)
{
  uint64_t end = op->offset + op->len;
  uint64_t pos = op->offset;

  while (pos < end) {
    off_t data = lseek (fep->fd, (off_t)pos, SEEK_DATA);

    if (data == -1 && errno != ENXIO)
      return op->nr_extents ? 0 : errno;

    uint64_t to = data == -1 || (uint64_t)data > end ? end : (uint64_t)data;
    if (!add_zeroes (fep, op, pos, to))
      return 0;
    pos = to;
    if (pos == end || (op->first_only && op->nr_extents > 0))
      return 0;

    off_t hole = lseek (fep->fd, (off_t)pos, SEEK_HOLE);

    /* A writer may have changed it since, so that the data is a hole now: then just go on
     * with a look from here, and say "data" where nothing can be told. */
    to = hole == -1 || (uint64_t)hole > end ? end : (uint64_t)hole;
    if (to > pos && !op_add_extent (op, (struct endpoint_extent){ .length = to - pos }))
      return 0;
    if (op->first_only && op->nr_extents > 0)
      return 0;
    pos = to;
  }
  return 0;
}
