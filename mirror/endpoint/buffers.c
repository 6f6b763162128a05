/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Memory for the data of requests.  See buffers.h.
 */

#include "config.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "mirror/endpoint/buffers.h"

#define HUGE_PAGE ((size_t)2 * 1024 * 1024)

/* Only whole huge pages are used, so that no other allocation shares them. */
static size_t
whole_pages (size_t size)
{
  return (size + HUGE_PAGE - 1) & ~(HUGE_PAGE - 1);
}

void *
buffers_new (size_t size)
{
  void *p;

  size = whole_pages (size);
  if (posix_memalign (&p, HUGE_PAGE, size) != 0)
    return NULL;
  madvise (p, size, MADV_HUGEPAGE); /* if not, then not */
  return p;
}

void
buffers_rest (void *p, size_t size)
{
  madvise (p, whole_pages (size), MADV_DONTNEED); /* if not, then not */
}
