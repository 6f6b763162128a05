/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Opening local files and block devices, and what they can do.
 *
 * Each is opened twice, for buffered and for direct I/O, because either may be the better one for a
 * request (see file.c).  Where O_DIRECT is refused, info.note says so.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/qemu-lock.h"
#include "base/text.h"
#include "base/tracked-mark.h"
#include "control/receive-exports.h"
#include "mirror/endpoint/file.h"

#define FILE_BLOCK 4096u /* aligned enough for direct I/O to any file system's files */

void
file_close (struct endpoint *ep)
{
  struct file_endpoint *fep = (struct file_endpoint *)ep;

  fd_close (&fep->fd);
  fd_close (&fep->direct_fd);
  if (fep->map)
    munmap (fep->map, fep->map_len);
  free (ep->name);
  text_free (ep->info.note);
  free (fep);
}

static bool
is_rotational (const struct stat *st)
{
  dev_t dev = S_ISBLK (st->st_mode) ? st->st_rdev : st->st_dev;
  static const char *const parents[] = { "", "../" }; /* a partition's queue is the disk's */

  for (size_t i = 0; i < sizeof parents / sizeof parents[0]; i++) {
    char path[100];

    snprintf (path, sizeof path, "/sys/dev/block/%u:%u/%squeue/rotational", major (dev),
              minor (dev), parents[i]);

    FILE *fp = fopen (path, "re");
    if (!fp)
      continue;

    int c = fgetc (fp);
    fclose (fp);
    return c == '1';
  }
  return false;
}

static const char *
type_name (mode_t mode)
{
  return S_ISDIR (mode)    ? "a directory"
         : S_ISFIFO (mode) ? "a fifo"
         : S_ISSOCK (mode) ? "a socket (give it as nbd+unix:///?socket=PATH)"
         : S_ISCHR (mode)  ? "a character device"
                           : "no file";
}

/* Open (or create) PATH; *CREATED tells which.  -1 with *ERRNUM and *ERROR. */
static int
open_fd (const char *path, const struct endpoint_options *opts, bool *created, struct stat *st,
         int *errnum, char **error)
{
  int flags = (opts->writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY;
  int fd;

  *created = false;
  if (stat (path, st) == 0) {
    /* The type is looked at before it is opened, because opening a fifo would wait. */
    if (!S_ISREG (st->st_mode) && !S_ISBLK (st->st_mode)) {
      endpoint_fail (errnum, error, S_ISDIR (st->st_mode) ? EISDIR : EINVAL,
                     "%s: this is %s; a regular file or a block device is needed", path,
                     type_name (st->st_mode));
      return -1;
    }
    fd = open (path, flags);
  } else if (errno == ENOENT && opts->create && opts->writable) {
    fd = open (path, flags | O_CREAT | O_EXCL, 0644);
    *created = fd != -1;
  } else
    fd = -1;
  if (fd == -1) {
    endpoint_fail (errnum, error, errno, "%s: %s", path, strerror (errno));
    return -1;
  }
  if (fstat (fd, st) == -1) {
    endpoint_fail (errnum, error, errno, "%s: %s", path, strerror (errno));
    close (fd);
    return -1;
  }
  return fd;
}

/* Who has FD's file open, so that nobody else may write to it?  Servers of ours lock it with
 * flock(), and QEMU as base/qemu-lock.h says.  Other programs lock nothing.  NULL: nobody, as far
 * as can be told. */
static const char *
who_uses (int fd)
{
  if (flock (fd, LOCK_EX | LOCK_NB) == -1)
    return errno == EWOULDBLOCK ? "a server of nbdmirror, as its lock says" : NULL;
  flock (fd, LOCK_UN);
  if (qemu_lock_is_held (fd))
    return "QEMU or one of its tools, as its lock says";
  return NULL;
}

const char *
file_used_by (const char *path)
{
  CLEANUP_FD int fd = open (path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

  return fd == -1 ? NULL : who_uses (fd);
}

/* Is it to be written to, and in use?  Then -1 with *ERRNUM and *ERROR. */
static int
refuse_used (const struct file_endpoint *fep, int *errnum, char **error)
{
  const char *who = fep->ep.opts.writable ? who_uses (fep->fd) : NULL;

  if (who == NULL)
    return 0;
  endpoint_fail (errnum, error, EROFS,
                 "refused: %s is in use by %s: what is written would be lost, or"
                 " harm its user",
                 fep->ep.name, who);
  return -1;
}

/* It is about to be written to: it is not what a state file knows of it any more, and stands at no
 * checkpoint.  -1 with *ERRNUM and *ERROR. */
static int
forget_tracking (const struct file_endpoint *fep, int *errnum, char **error)
{
  if (!fep->ep.opts.writable)
    return 0;
  bool stood = fremovexattr (fep->fd, RECEIVE_STANDING_ATTRIBUTE) == 0;
  if ((!stood || fsync (fep->fd) == 0) && tracked_mark_remove (fep->fd) == 0)
    return 0;
  endpoint_fail (errnum, error, errno, "%s: that it was tracked cannot be forgotten: %s",
                 fep->ep.name, strerror (errno));
  return -1;
}

/* Find the size, extending the file if that was asked for.  -1 with *ERRNUM and *ERROR. */
static int
find_size (struct file_endpoint *fep, const struct stat *st, int *errnum, char **error)
{
  const struct endpoint_options *opts = &fep->ep.opts;
  struct endpoint_info *info = &fep->ep.info;

  fep->align = FILE_BLOCK;
  if (S_ISBLK (st->st_mode)) {
    int sector;

    if (ioctl (fep->fd, BLKGETSIZE64, &info->size) == -1) {
      endpoint_fail (errnum, error, errno, "%s: the device's size: %s", fep->ep.name,
                     strerror (errno));
      return -1;
    }
    if (ioctl (fep->fd, BLKSSZGET, &sector) == 0 && sector > 0)
      fep->align = (uint32_t)sector;
    return 0;
  }
  info->size = (uint64_t)st->st_size;
  if (opts->grows && opts->writable) {
    info->size = INT64_MAX;
    return 0;
  }
  if (!opts->create || !opts->writable || info->size >= opts->create_size)
    return 0;
  if (opts->create_size > INT64_MAX || ftruncate (fep->fd, (off_t)opts->create_size) == -1) {
    int err = opts->create_size > INT64_MAX ? EFBIG : errno;

    endpoint_fail (errnum, error, err, "%s: cannot extend it to %llu bytes: %s", fep->ep.name,
                   (unsigned long long)opts->create_size, strerror (err));
    return -1;
  }
  info->size = opts->create_size;
  return 0;
}

/* Open the same file again, for direct I/O.  Doing without it is no error. */
static void
open_direct (struct file_endpoint *fep, const struct stat *st)
{
  struct endpoint_info *info = &fep->ep.info;
  int flags = (fep->ep.opts.writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY | O_DIRECT;
  struct stat again;

  fep->direct_fd = open (fep->ep.name, flags);
  if (fep->direct_fd != -1
      && (fstat (fep->direct_fd, &again) == -1 || again.st_dev != st->st_dev
          || again.st_ino != st->st_ino)) {
    /* The path was given to another file meanwhile. */
    close (fep->direct_fd);
    fep->direct_fd = -1;
    errno = ESTALE;
  }
  info->direct = fep->direct_fd != -1;
  /* What is read through the cache then was just written, so reading ahead brings nothing. */
  if (info->direct)
    posix_fadvise (fep->fd, 0, 0, POSIX_FADV_RANDOM);
  if (!info->direct)
    info->note = text_printf ("%s: O_DIRECT is refused (%s), going through the page cache",
                              fep->ep.name, strerror (errno));
}

/* Map it for file_is_cached().  The mapping is never touched, so it takes no memory. */
static void
map (struct file_endpoint *fep)
{
  uint64_t len = fep->ep.info.size;

  fep->page = (size_t)sysconf (_SC_PAGESIZE);
  if (fep->direct_fd == -1 || len == 0 || len > SIZE_MAX || fep->ep.opts.grows)
    return;
  fep->map = mmap (NULL, (size_t)len, PROT_READ, MAP_SHARED, fep->fd, 0);
  if (fep->map == MAP_FAILED)
    fep->map = NULL;
  fep->map_len = (size_t)len;
}

struct endpoint *
endpoint_file_open (const char *path, const struct endpoint_options *opts, int *errnum,
                    char **error)
{
  struct file_endpoint *fep = calloc (1, sizeof *fep);
  struct stat st;
  bool created = false;

  if (!fep || !(fep->ep.name = strdup (path))) {
    free (fep);
    endpoint_fail (errnum, error, ENOMEM, "%s: %s", path, strerror (ENOMEM));
    return NULL;
  }

  struct endpoint_info *info = &fep->ep.info;

  fep->ep.ops = &file_ops;
  fep->ep.opts = *opts;
  fep->direct_fd = -1;
  fep->fd = open_fd (path, opts, &created, &st, errnum, error);
  if (fep->fd == -1 || refuse_used (fep, errnum, error) == -1
      || forget_tracking (fep, errnum, error) == -1 || find_size (fep, &st, errnum, error) == -1) {
    if (created)
      unlink (path);
    file_close (&fep->ep);
    return NULL;
  }

  open_direct (fep, &st);
  map (fep);
  info->min_block = 1;
  info->max_request = ENDPOINT_MAX_REQUEST;
  info->read_only = !opts->writable;
  info->can_flush = info->can_zero = info->can_multi_conn = true;
  info->can_status
      = S_ISREG (st.st_mode) && (info->size == 0 || lseek (fep->fd, 0, SEEK_HOLE) != -1);
  info->is_rotational = is_rotational (&st);
  return &fep->ep;
}
