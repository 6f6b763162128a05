/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The parameters of the receive filter.  `nbdmirror receive` passes descriptors of what it has
 * locked and watches; the filter keeps them for itself (close-on-exec).
 */

#include "config.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include <nbdkit-filter.h>

#include "nbd-plugin/receive/filter.h"

const char receive_help[]
    = "receive-keep-allocated=<BOOL>  Zeroes that the mirror writes leave no holes.\n"
      "receive-sealed=<BOOL>          Sealed from the beginning.\n"
      "receive-disk-fd=<FD>, receive-disk-path=<PATH>, receive-notify-fd=<FD>, "
      "receive-take-over-fd=<FD>, receive-fenced=<BOOL>\n"
      "                               For nbdmirror receive, which locks the disk and supervises "
      "the server.";

static int
take_descriptor (const char *key, const char *value, int *fd)
{
  if (nbdkit_parse_int (key, value, fd) == -1)
    return -1;
  if (fcntl (*fd, F_SETFD, FD_CLOEXEC) == 0)
    return 1;
  nbdkit_error ("%s=%s: %m", key, value);
  return -1;
}

static int
take_bool (const char *value, bool *flag)
{
  int v = nbdkit_parse_bool (value);

  *flag = v == 1;
  return v == -1 ? -1 : 1;
}

int
receive_parameter (struct receive_options *c, const char *key, const char *value)
{
  if (strcmp (key, "receive-notify-fd") == 0) {
    c->one_client = !nbdkit_stdio_safe (); /* nbdkit knows it only from now on */
    return take_descriptor (key, value, &c->notify_fd);
  }
  if (strcmp (key, "receive-disk-fd") == 0)
    return take_descriptor (key, value, &c->disk_fd);
  if (strcmp (key, "receive-disk-path") == 0) {
    free (c->disk_path);
    c->disk_path = strdup (value);
    return c->disk_path == NULL ? -1 : 1;
  }
  if (strcmp (key, "receive-take-over-fd") == 0)
    return take_descriptor (key, value, &c->take_over_fd);
  if (strcmp (key, "receive-fenced") == 0)
    return take_bool (value, &c->fenced);
  if (strcmp (key, "receive-sealed") == 0)
    return take_bool (value, &c->sealed);
  if (strcmp (key, "receive-keep-allocated") == 0)
    return take_bool (value, &c->keep_allocated);
  return 0;
}
