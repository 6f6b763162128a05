/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the two halves of the file endpoint share: endpoint-file-open.c opens and describes,
 * endpoint-file.c does requests.
 */

#ifndef NBDMIRROR_ENDPOINT_FILE_H
#define NBDMIRROR_ENDPOINT_FILE_H

#include "mirror/endpoint-internal.h"

struct file_endpoint {
  struct endpoint ep;
  int fd;         /* buffered */
  int direct_fd;  /* O_DIRECT, or -1 */
  uint32_t align; /* what direct_fd asks for */
  void *map;      /* for mincore() only: the file may be shorter now; NULL if it cannot be mapped */
  size_t map_len;
  size_t page;    /* the kernel's page size, at least 4096 */
};

extern const struct endpoint_ops file_ops;

/* endpoint_close(). */
void file_close (struct endpoint *ep);

#endif
