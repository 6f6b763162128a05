/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The file of a budget.  See store.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fd.h"
#include "base/range-lock.h"
#include "base/text.h"
#include "budget/store.h"

#define OTHERS (S_IRWXG | S_IRWXO)

/* ---- the directory ---- */

static char *
directory_name (void)
{
  const char *given = getenv ("NBDMIRROR_BUDGETS");

  return given != NULL && given[0] != '\0' ? text_copy (given)
                                           : text_printf ("/dev/shm/nbdmirror-%u", geteuid ());
}

/* Is it ours alone?  Else *ERROR says what is wrong. */
static bool
is_ours (const char *path, const struct stat *st, char **error)
{
  if (st->st_uid != geteuid ())
    text_error (error, "%s belongs to another user (%u)", path, st->st_uid);
  else if ((st->st_mode & OTHERS) != 0)
    text_error (error,
                "%s is open to other users (mode %03o): budgets need a directory of mode 700", path,
                st->st_mode & 0777);
  else
    return true;
  return false;
}

int
budget_directory (bool create, int *fd, char **error)
{
  CLEANUP_TEXT char *path = directory_name ();
  struct stat st;

  *fd = -1;
  if (create && mkdir (path, 0700) == -1 && errno != EEXIST)
    return text_error (error, "%s: %s", path, strerror (errno));
  *fd = open (path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (*fd == -1 && errno == ENOENT)
    return create ? text_error (error, "%s: it was removed meanwhile", path) : 1;
  if (*fd == -1 || fstat (*fd, &st) == -1)
    text_error (error, "%s: %s", path,
                errno == ELOOP || errno == ENOTDIR ? "it is no directory" : strerror (errno));
  else if (is_ours (path, &st, error))
    return 0;
  fd_close (fd);
  return -1;
}

/* ---- a file ---- */

static char *
file_name (const char *name)
{
  CLEANUP_TEXT char *directory = directory_name ();

  return text_printf ("%s/%s", directory, name);
}

/* The file is another program's, or of an older version, or of a newer one. */
static void
foreign (const char *name, char **error)
{
  CLEANUP_TEXT char *path = file_name (name);

  text_error (error, "budget %s: %s is none of nbdmirror, or of another version", name, path);
}

static bool
check_file (int fd, const char *name, char **error)
{
  CLEANUP_TEXT char *path = file_name (name);
  struct stat st;

  if (fstat (fd, &st) == -1)
    text_error (error, "budget %s: %s", name, strerror (errno));
  else if (!S_ISREG (st.st_mode) || st.st_size != sizeof (struct budget_memory))
    foreign (name, error);
  else
    return is_ours (path, &st, error);
  return false;
}

/* With room for all of it: in a full file system the first touch of a page would be a SIGBUS, for
 * whoever joins last.  False with errno. */
static bool
map_file (struct budget_file *f)
{
  errno = posix_fallocate (f->fd, 0, sizeof *f->memory);
  if (errno != 0)
    return false;
  void *p = mmap (NULL, sizeof *f->memory, PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, 0);

  f->memory = p != MAP_FAILED ? p : NULL;
  return f->memory != NULL;
}

static bool
check_memory (const struct budget_memory *m, const char *name, char **error)
{
  if (memcmp (m->magic, BUDGET_MAGIC, sizeof m->magic) == 0 && m->version == BUDGET_VERSION
      && m->nr_slots == BUDGET_SLOTS)
    return true;
  foreign (name, error);
  return false;
}

int
budget_file_open (int dir, const char *name, struct budget_file *f, char **error)
{
  *f = (struct budget_file){ .fd = -1 };
  f->fd = openat (dir, name, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  if (f->fd == -1 && errno == ENOENT)
    return 1;
  if (f->fd == -1)
    return text_error (error, "budget %s: %s", name,
                       errno == ELOOP ? "its file is a symbolic link" : strerror (errno));
  if (check_file (f->fd, name, error)) {
    if (!map_file (f))
      text_error (error, "budget %s: %s", name, strerror (errno));
    else if (check_memory (f->memory, name, error))
      return 0;
  }
  budget_file_close (f);
  return -1;
}

/* Make FD the file of a new budget. */
static bool
fill (int fd, uint64_t rate)
{
  struct budget_file f = { .fd = fd };

  if (!map_file (&f))
    return false;
  memcpy (f.memory->magic, BUDGET_MAGIC, sizeof f.memory->magic);
  f.memory->version = BUDGET_VERSION;
  f.memory->nr_slots = BUDGET_SLOTS;
  atomic_store (&f.memory->rate, rate);
  munmap (f.memory, sizeof *f.memory);
  return true;
}

/* Nobody sees it before it is complete. */
int
budget_file_create (int dir, const char *name, uint64_t rate, char **error)
{
  CLEANUP_FD int fd = openat (dir, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  char path[40];

  if (fd == -1 || !fill (fd, rate))
    return text_error (error, "budget %s: it cannot be created: %s", name, strerror (errno));
  snprintf (path, sizeof path, "/proc/self/fd/%d", fd);
  if (linkat (AT_FDCWD, path, dir, name, AT_SYMLINK_FOLLOW) == 0)
    return 0;
  if (errno == EEXIST)
    return 1;
  return text_error (error, "budget %s: it cannot be created: %s", name, strerror (errno));
}

void
budget_file_set_rate (struct budget_file *f, uint64_t rate, uint64_t now_ns)
{
  struct budget_memory *m = f->memory;
  uint64_t old = atomic_exchange (&m->rate, rate), paid = atomic_load (&m->paid_ns);

  if (old != 0 && rate != 0 && paid > now_ns) {
    uint64_t scaled = now_ns + (uint64_t)((double)(paid - now_ns) * (double)old / (double)rate);
    /* Who spends meanwhile makes this fail, and then the old debt is served: no harm. */
    atomic_compare_exchange_strong (&m->paid_ns, &paid, scaled);
  }
}

/* With all slots in our hands nobody is a member, and whoever joins now finds the file gone. */
int
budget_file_remove (int dir, const char *name, const struct budget_file *f, char **error)
{
  struct stat st;

  if (!budget_lock (f->fd, 0, BUDGET_SLOTS))
    return text_error (error, "budget %s: it has members", name);
  /* Another one had them before us, and has removed the file. */
  if (fstat (f->fd, &st) == 0 && st.st_nlink == 0)
    return 1;
  if (unlinkat (dir, name, 0) == -1)
    return text_error (error, "budget %s: %s", name, strerror (errno));
  return 0;
}

void
budget_file_close (struct budget_file *f)
{
  if (f->memory != NULL)
    munmap (f->memory, sizeof *f->memory);
  f->memory = NULL;
  fd_close (&f->fd);
}

/* ---- slots ---- */

bool
budget_lock (int fd, unsigned first, unsigned count)
{
  return range_lock (fd, first, count);
}

bool
budget_is_locked (int fd, unsigned slot)
{
  return range_is_locked (fd, slot, 1);
}

bool
budget_is_being_removed (int fd)
{
  struct flock fl = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1 };

  return fcntl (fd, F_OFD_GETLK, &fl) == 0 && fl.l_type != F_UNLCK && fl.l_len > 1;
}
