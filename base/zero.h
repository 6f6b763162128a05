/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Are these bytes all zero?
 */

#ifndef NBDMIRROR_BASE_ZERO_H
#define NBDMIRROR_BASE_ZERO_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

/* LENGTH may be 0.  memcmp() gives up at the first byte that is not zero, so this costs nothing
 * where there is data. */
static inline bool
all_zero (const void *data, size_t length)
{
  const char *p = data;

  return length == 0 || (p[0] == 0 && memcmp (p, p + 1, length - 1) == 0);
}

#endif
