/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Do two endpoint names mean the same place?  See same.h.
 */

#include "config.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "mirror/endpoint/same-place.h"

struct place {
  char path[PATH_MAX]; /* of the file, the device, or the server's socket */
  const char *export;  /* the name of the export in a URI and its length; else NULL */
  size_t export_len;
};

/* A URI that names no socket, or one that is too long, is its own path: no file has that name. */
static void
parse (const char *name, struct place *p)
{
  const char *start = strstr (name, "+unix://");
  const char *query = start ? strchr (start, '?') : NULL;
  const char *socket = query ? strstr (query, "socket=") : NULL;

  *p = (struct place){ .export = NULL };
  if (socket == NULL || (socket[-1] != '?' && socket[-1] != '&')) {
    snprintf (p->path, sizeof p->path, "%s", name);
    return;
  }
  p->export = start + strlen ("+unix://");
  while (*p->export == '/')
    p->export ++;
  p->export_len = (size_t)(query - p->export);
  socket += strlen ("socket=");
  snprintf (p->path, sizeof p->path, "%.*s", (int)strcspn (socket, "&#"), socket);
}

bool
same_place (const char *a, const char *b)
{
  struct place pa, pb;
  struct stat sa, sb;

  if (a == NULL || b == NULL)
    return false;
  if (strcmp (a, b) == 0)
    return true;
  parse (a, &pa);
  parse (b, &pb);
  if ((pa.export == NULL) != (pb.export == NULL) || stat (pa.path, &sa) == -1
      || stat (pb.path, &sb) == -1)
    return false;
  if (pa.export
      && (pa.export_len != pb.export_len || strncmp (pa.export, pb.export, pa.export_len) != 0))
    return false;
  if (S_ISBLK (sa.st_mode) && S_ISBLK (sb.st_mode))
    return sa.st_rdev == sb.st_rdev;
  return sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
}
