/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the parts of the file endpoint share: file-open.c opens and describes,
 * file.c does requests, file-status.c tells holes from data, file-cache.c looks into the page
 * cache.
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_FILE_H
#define NBDMIRROR_MIRROR_ENDPOINT_FILE_H

#include "mirror/endpoint/internal.h"

struct file_endpoint {
  struct endpoint ep;
  int fd;         /* buffered */
  int direct_fd;  /* O_DIRECT, or -1 */
  uint32_t align; /* what direct_fd asks for */
  void *map;      /* for mincore() only: the file may be shorter now; NULL if it cannot be mapped */
  size_t map_len;
  size_t page; /* the kernel's page size, at least 4096 */
};

extern const struct endpoint_ops file_ops;

/* Do OP, an OP_STATUS: add what is there to it.  0, or an errno.  Any thread. */
int file_status (const struct file_endpoint *fep, struct op *op);

struct file_range {
  uint64_t offset, len; /* bytes */
};

/* How much of a range is in the page cache?  CACHED_DIRTY: some of it, and written to or (where the
 * kernel does not tell) likely so.  These three start no I/O and may be called from any thread. */
enum cached { CACHED_NOT, CACHED_DIRTY, CACHED_ALL };
enum cached file_is_cached (const struct file_endpoint *fep, uint64_t len, uint64_t offset);
/* The parts of it that are not, ascending, each beginning at a page or at OFFSET.  Returns how
 * many; -1 if there are more than MAX, or if it cannot tell. */
int file_not_cached (const struct file_endpoint *fep, uint64_t len, uint64_t offset,
                     struct file_range *parts, unsigned max);
/* Read a range that is in the page cache.  False if it is not all there any more. */
bool file_read_cached (const struct file_endpoint *fep, void *buf, uint64_t len, uint64_t offset);

/* Open PATH.  OPTS have their defaults filled in.  NULL with *ERRNUM and *ERROR. */
struct endpoint *endpoint_file_open (const char *path, const struct endpoint_options *opts,
                                     int *errnum, char **error);
/* Who has the file at PATH open, so that it may change at any time?  A phrase, or NULL: nobody, or
 * it cannot be told, since most programs lock nothing.  Any thread. */
const char *file_used_by (const char *path);
/* endpoint_close(). */
void file_close (struct endpoint *ep);

#endif
