/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * backup: a temporary folder, for sockets and logs.  The workers and servers inherit its lock.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/private-dir.h"
#include "cmd/backup/backup.h"

/* Is it a disk's number and one of our suffixes? */
static bool
is_ours (const char *name)
{
  static const char *const suffixes[] = { "log", "json", "sock", "control", "control.fence" };
  size_t digits = strspn (name, "0123456789");

  for (unsigned k = 0; k < sizeof suffixes / sizeof suffixes[0]; k++)
    if (digits > 0 && name[digits] == '.' && strcmp (name + digits + 1, suffixes[k]) == 0)
      return true;
  return false;
}

static bool
clear (int fd, const char *path)
{
  (void)path;
  private_dir_unlink (fd, is_ours);
  return true;
}

int
backup_make_folder (struct backup_run *run)
{
  static const struct private_dir_kind kind = { "nbdmirror-backup-", clear };

  run->folder_fd = private_dir_make (&kind, run->folder);
  if (run->folder_fd != -1 && fcntl (run->folder_fd, F_SETFD, 0) == 0)
    return 0;
  cmd_say ("%s: %s", run->folder, strerror (errno));
  if (run->folder_fd == -1)
    run->folder[0] = '\0';
  return -1;
}

void
backup_remove_folder (const struct backup_run *run)
{
  if (run->folder[0] == '\0')
    return;
  clear (run->folder_fd, run->folder);
  rmdir (run->folder);
}
