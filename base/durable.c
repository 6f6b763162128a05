/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See durable.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/durable.h"
#include "base/fd.h"
#include "base/text.h"

int
durable_folder (const char *path, char **error)
{
  CLEANUP_TEXT char *folder = text_copy (path);
  char *slash = strrchr (folder, '/');

  if (slash == NULL)
    return text_error (error, "%s: not an absolute path", path);
  slash[slash == folder] = '\0';
  CLEANUP_FD int fd = open (folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd == -1 || fsync (fd) == -1)
    return text_error (error, "%s: cannot make the directory durable: %s", folder,
                       strerror (errno));
  return 0;
}

static int
write_whole (const char *path, const char *text)
{
  CLEANUP_FD int fd = open (path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);

  return fd == -1 || fd_write_all (fd, text, strlen (text)) == -1 || fsync (fd) == -1 ? -1 : 0;
}

int
durable_replace (const char *path, const char *text, char **error)
{
  CLEANUP_TEXT char *new = text_printf ("%s" DURABLE_DRAFT, path);

  if (write_whole (new, text) == -1 || rename (new, path) == -1) {
    text_error (error, "%s: %s", path, strerror (errno));
    unlink (new);
    return -1;
  }
  return durable_folder (path, error);
}

int
durable_remove (const char *path, char **error)
{
  if (unlink (path) == 0)
    return durable_folder (path, error);
  return errno == ENOENT ? 0 : text_error (error, "%s: %s", path, strerror (errno));
}
