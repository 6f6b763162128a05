/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Do two endpoint names mean the same place?  See same.h.
 */

#include <config.h>

#include <string.h>
#include <sys/stat.h>

#include "mirror/same.h"

bool
same_place (const char *a, const char *b)
{
  struct stat sa, sb;

  if (a == NULL || b == NULL)
    return false;
  if (strcmp (a, b) == 0)
    return true;
  if (stat (a, &sa) == -1 || stat (b, &sb) == -1)
    return false;
  if (S_ISBLK (sa.st_mode) && S_ISBLK (sb.st_mode))
    return sa.st_rdev == sb.st_rdev;
  return sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
}
