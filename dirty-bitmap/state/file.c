/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The state file itself.  See file.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <linux/magic.h>

#include "base/fd.h"
#include "base/range-lock.h"
#include "base/text.h"
#include "base/tracked-mark.h"
#include "dirty-bitmap/state/file.h"
#include "dirty-bitmap/state/lost-pages.h"

static int
write_file (void *opaque, const void *data, size_t length, uint64_t offset)
{
  struct state_file *f = opaque;

  for (size_t done = 0; done < length;) {
    ssize_t n = pwrite (f->fd, (const char *)data + done, length - done, (off_t)(offset + done));
    if (n == -1 && errno != EINTR)
      return -1;
    done += n > 0 ? (size_t)n : 0;
  }
  return 0;
}

static int
read_file (void *opaque, void *data, size_t length, uint64_t offset)
{
  struct state_file *f = opaque;

  for (size_t done = 0; done < length;) {
    ssize_t n = pread (f->fd, (char *)data + done, length - done, (off_t)(offset + done));
    if (n == 0)
      errno = EIO; /* it is shorter than it was */
    if (n == 0 || (n == -1 && errno != EINTR))
      return -1;
    done += n > 0 ? (size_t)n : 0;
  }
  return 0;
}

static int
sync_file (void *opaque)
{
  struct state_file *f = opaque;
  return fdatasync (f->fd);
}

/* A commit must not wait for the pages of the live maps, which fdatasync() would write as well.
 * msync() is the one call that syncs a part of a file.  It does not matter to it that the pages
 * were written by pwrite(). */
static int
sync_l1 (void *opaque)
{
  struct state_file *f = opaque;
  return f->l1 != NULL ? msync (f->l1, f->l1_bytes, MS_SYNC) : fdatasync (f->fd);
}

/* Other file systems may sync less than that (FUSE did for years). */
static bool
syncs_parts (int fd)
{
  struct statfs fs;

  return fd != -1 && fstatfs (fd, &fs) == 0
         && (fs.f_type == EXT4_SUPER_MAGIC || fs.f_type == XFS_SUPER_MAGIC
             || fs.f_type == BTRFS_SUPER_MAGIC);
}

static int
sync_disk (void *opaque)
{
  struct state_file *f = opaque;
  return fdatasync (f->disk_fd);
}

static int
mark_disk (void *opaque, const uint8_t mark[16])
{
  struct state_file *f = opaque;
  return state_file_mark_disk (f->disk_fd, mark) ? 0 : -1;
}

static int
allocate (void *opaque, uint64_t offset, uint64_t length)
{
  return state_file_allocate (opaque, offset, length);
}

/* The room is given back.  What is there then reads as zeroes, which is a recording without a
 * bit. */
static void
discard (void *opaque, uint64_t offset, uint64_t length)
{
  struct state_file *f = opaque;

  if (fallocate (f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length)
      == -1)
    return; /* it is used again later */
}

struct state_io
state_file_io (struct state_file *f)
{
  return (struct state_io){ .read = read_file,
                            .allocate = allocate,
                            .discard = discard,
                            .write = write_file,
                            .sync = sync_file,
                            .sync_l1 = syncs_parts (f->fd) ? sync_l1 : NULL,
                            .sync_disk = f->disk_fd != -1 ? sync_disk : NULL,
                            .mark_disk = f->disk_fd != -1 ? mark_disk : NULL,
                            .lost_page = &f->lost_page,
                            .opaque = f };
}

int
state_file_allocate (struct state_file *f, uint64_t offset, uint64_t length)
{
  if (offset == 0 && lseek (f->fd, 0, SEEK_END) == 0
      && (write_file (f, STATE_BEGUN, sizeof STATE_BEGUN, 0) == -1 || fdatasync (f->fd) == -1))
    return -1;
  int r = length != 0 ? posix_fallocate (f->fd, (off_t)offset, (off_t)length) : 0;

  errno = r;
  return r == 0 ? 0 : -1;
}

bool
state_file_mark_disk (int disk_fd, const uint8_t mark[16])
{
  if (mark == NULL)
    return fremovexattr (disk_fd, TRACKED_MARK_ATTRIBUTE) == 0 ? fsync (disk_fd) == 0
                                                               : errno == ENODATA;
  return fsetxattr (disk_fd, TRACKED_MARK_ATTRIBUTE, mark, 16, 0) == 0 && fsync (disk_fd) == 0;
}

int
state_file_lock (struct state_file *f, bool *busy, char **error)
{
  if (range_lock (f->fd, 0, 0))
    return 0;
  bool used = range_is_taken (errno);
  if (busy != NULL)
    *busy = used;
  return used ? text_error (error, "another server uses it")
              : text_error (error, "it cannot be locked: %s", strerror (errno));
}

static int
give_room (struct state_file *f, uint64_t length, char **error)
{
  if (state_file_allocate (f, 0, length) == 0)
    return 0;
  return text_error (error, "no room for the state of %llu bytes: %s", (unsigned long long)length,
                     strerror (errno));
}

static int
map (struct state_file *f, uint64_t offset, size_t length, _Atomic uint64_t **where, char **error)
{
  static _Atomic uint64_t nothing; /* what the maps of an empty disk are */

  if (*where != NULL)
    return 0;
  f->live_bytes = length;
  if (length == 0) {
    *where = &nothing;
    return 0;
  }
  void *p = mmap (NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, (off_t)offset);
  if (p == MAP_FAILED)
    return text_error (error, "mmap: %s", strerror (errno));
  if (lost_pages_watch (p, length, &f->lost_page) == -1) {
    munmap (p, length);
    return text_error (error, "too many files are mapped");
  }
  *where = p;
  return 0;
}

/* From the beginning, since a mapping begins with a page of the machine's. */
static int
map_l1 (struct state_file *f, const struct state_layout *l, char **error)
{
  if (f->l1 != NULL)
    return 0;
  f->l1_bytes = l->l1_offset + 2 * l->nr_l1_pages * STATE_PAGE;
  void *p = mmap (NULL, f->l1_bytes, PROT_READ, MAP_SHARED, f->fd, 0);
  if (p == MAP_FAILED)
    return text_error (error, "mmap: %s", strerror (errno));
  f->l1 = p;
  return 0;
}

int
state_file_map_job (struct state_file *f, const struct state_layout *l, char **error)
{
  if ((f->live == NULL && give_room (f, l->file_size, error) == -1) || map_l1 (f, l, error) == -1)
    return -1;
  return map (f, l->live_offset, l->live_bytes, &f->live, error);
}

int
state_file_map_recordings (struct state_file *f, const struct state_layout *l, char **error)
{
  if ((f->slots[1] == NULL && give_room (f, l->areas_offset, error) == -1)
      || map_l1 (f, l, error) == -1)
    return -1;
  for (unsigned i = 0; i < 2; i++)
    if (map (f, l->recordings_offset + i * l->live_bytes, l->live_bytes, &f->slots[i], error) == -1)
      return -1;
  return 0;
}

int
state_file_map_again (struct state_file *f, const struct state_layout *l, char **error)
{
  _Atomic uint64_t *maps[] = { f->live, f->slots[0], f->slots[1] };
  const uint64_t offsets[]
      = { l->live_offset, l->recordings_offset, l->recordings_offset + l->live_bytes };

  if (give_room (f, f->slots[1] != NULL ? l->areas_offset : l->file_size, error) == -1)
    return -1;
  atomic_store (&f->lost_page, false);
  for (unsigned i = 0; i < 3; i++)
    if (maps[i] != NULL
        && mmap ((void *)maps[i], f->live_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                 f->fd, (off_t)offsets[i])
               == MAP_FAILED) {
      text_error (error, "mmap: %s", strerror (errno));
      atomic_store (&f->lost_page, true);
      return -1;
    }
  return 0;
}

static void
unmap (const struct state_file *f, _Atomic uint64_t **where)
{
  if (*where != NULL && f->live_bytes != 0) {
    lost_pages_unwatch ((void *)*where);
    munmap ((void *)*where, f->live_bytes);
  }
  *where = NULL;
}

void
state_file_close (struct state_file *f)
{
  unmap (f, &f->live);
  unmap (f, &f->slots[0]);
  unmap (f, &f->slots[1]);
  if (f->l1 != NULL)
    munmap (f->l1, f->l1_bytes);
  f->l1 = NULL;
  fd_close (&f->fd);
  fd_close (&f->disk_fd);
}
