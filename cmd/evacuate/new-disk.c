/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * evacuate-disk: the new disk.  It is made like the old one, unless it is there already.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/child.h"
#include "base/text.h"
#include "cmd/evacuate/evacuate.h"
#include "cmd/units.h"
#include "mirror/endpoint/same-place.h"

static bool
has_room (const struct evacuate *e, double size)
{
  CLEANUP_TEXT char *folder
      = text_printf ("%.*s", (int)(strrchr (e->disk, '/') - e->disk + 1), e->disk);
  struct statvfs fs;
  struct stat st;

  if (e->old.disk != NULL && stat (e->old.disk, &st) == 0 && S_ISREG (st.st_mode)
      && (double)st.st_blocks * 512 < size)
    size = (double)st.st_blocks * 512; /* holes stay holes */
  if (statvfs (folder, &fs) == 0 && (double)fs.f_bavail * (double)fs.f_frsize < size) {
    char need[UNITS_BUF], have[UNITS_BUF];
    cmd_say ("%s: %s are needed, and %s are free", e->disk,
             units_format_size (need, (uint64_t)size),
             units_format_size (have, (uint64_t)fs.f_bavail * fs.f_frsize));
    return false;
  }
  return true;
}

/* Make a new, empty file a disk of SIZE bytes.  -1 after an error message. */
static int
give_size (const struct evacuate *e, int fd, uint64_t size)
{
  const char *format = e->new.format;
  if (format == NULL || strcmp (format, "raw") == 0) {
    if (ftruncate (fd, (off_t)size) == 0)
      return 0;
    cmd_say ("%s: %s", e->disk, strerror (errno));
    return -1;
  }
  CLEANUP_TEXT char *bytes = text_printf ("%" PRIu64, size);
  const char *const words[] = { "qemu-img", "create", "-q", "-f", format, e->disk, bytes, NULL };
  int r = child_run (words, NULL);
  if (r == -1)
    cmd_say ("%s: qemu-img cannot be run: is qemu-utils installed?", e->disk);
  else if (r != 0)
    cmd_say ("%s: qemu-img cannot make it as %s", e->disk, format);
  return r == 0 ? 0 : -1;
}

/* Made like the old one: the same size, owner and mode. */
static int
create_disk (struct evacuate *e, double size)
{
  struct stat st;

  if (!has_room (e, size))
    return -1;
  int fd = open (e->disk, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd == -1) {
    cmd_say ("%s: %s", e->disk, strerror (errno));
    return -1;
  }
  e->created = true;
  if (give_size (e, fd, (uint64_t)size) == -1) {
    close (fd);
    return -1;
  }
  if (e->old.disk != NULL && stat (e->old.disk, &st) == 0 && S_ISREG (st.st_mode)
      && (fchown (fd, st.st_uid, st.st_gid) == -1 || fchmod (fd, st.st_mode & 07777) == -1))
    cmd_warning ("%s: owner and mode are not those of %s: %s", e->disk, e->old.disk,
                 strerror (errno));
  close (fd);
  return 0;
}

int
evacuate_prepare_disk (struct evacuate *e, double size)
{
  struct stat st;

  if (same_place (e->disk, e->old.disk)) {
    cmd_say ("%s: this is the guest's disk already, nothing to do", e->disk);
    return -1;
  }
  if (lstat (e->disk, &st) == -1) {
    if (errno != ENOENT) {
      cmd_say ("%s: %s", e->disk, strerror (errno));
      return EXIT_ERROR;
    }
    if (e->sync.mode == ENGINE_SYNC_TOP || e->sync.mode == ENGINE_SYNC_BASE) {
      cmd_say ("%s: does not exist, so it does not hold the base: copy the base there first",
               e->disk);
      return EXIT_REFUSED;
    }
    if (create_disk (e, size) == 0)
      return 0;
    evacuate_remove_disk (e);
    return EXIT_ERROR;
  }
  if (!S_ISREG (st.st_mode) && !S_ISBLK (st.st_mode)) {
    cmd_say ("%s: neither a regular file nor a block device", e->disk);
    return EXIT_ERROR;
  }
  if ((S_ISBLK (st.st_mode) || st.st_size > 0) && !e->overwrite && !e->resume) {
    cmd_say ("%s: exists and %s: with --overwrite it is used", e->disk,
             S_ISBLK (st.st_mode) ? "is a block device" : "is not empty");
    return EXIT_REFUSED;
  }
  return 0;
}

void
evacuate_remove_disk (struct evacuate *e)
{
  if (e->created && unlink (e->disk) == -1)
    cmd_warning ("%s is left over: %s", e->disk, strerror (errno));
}
