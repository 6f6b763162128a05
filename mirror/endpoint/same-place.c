/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Do two endpoint names mean the same place?  See same-place.h.
 */

#include "config.h"

#include <string.h>
#include <sys/stat.h>

#include "mirror/endpoint/same-place.h"
#include "mirror/endpoint/uri.h"

/* What file stands for NAME: its own, or its server's socket.  -1: none that can be told. */
static int
stat_place (const char *name, const struct uri *uri, struct stat *st)
{
  const char *path = name;

  if (uri != NULL && (!uri->is_unix || (path = uri_parameter (uri, "socket")) == NULL))
    return -1;
  return stat (path, st);
}

static bool
same_export (const struct uri *a, const struct uri *b)
{
  if (a == NULL || b == NULL)
    return a == b;
  return strcmp (a->export, b->export) == 0;
}

bool
same_place (const char *a, const char *b)
{
  struct stat sa, sb;

  if (a == NULL || b == NULL)
    return false;
  if (strcmp (a, b) == 0)
    return true;

  struct uri *ua = uri_read (a, NULL), *ub = uri_read (b, NULL);
  bool same = same_export (ua, ub) && stat_place (a, ua, &sa) == 0 && stat_place (b, ub, &sb) == 0;

  uri_free (ua);
  uri_free (ub);
  if (same && S_ISBLK (sa.st_mode) && S_ISBLK (sb.st_mode))
    return sa.st_rdev == sb.st_rdev;
  return same && sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
}
