/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Memory for the data of requests.  See buffers.h.
 */

#include "config.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "mirror/endpoint/buffers.h"

#define HUGE_PAGE ((size_t)2 * 1024 * 1024)

void *
buffers_new (size_t size)
{
  void *p;

  /* Only whole huge pages are used, so that no other allocation shares them. */
  size = (size + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
  if (posix_memalign (&p, HUGE_PAGE, size) != 0)
    return NULL;
  madvise (p, size, MADV_HUGEPAGE); /* if not, then not */
  return p;
}
