/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Preloaded into a server by bench/run state: each fdatasync, and each durable pwritev2, takes
 * $SYNC_MS more, as on a device that is slow to flush.  Those of $SYNC_FILE are counted in the
 * first 8 bytes of $SYNC_COUNT.
 */

#include "config.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

static int (*real) (int);
static ssize_t (*real_writev) (int, const struct iovec *, int, off_t, int);
static _Atomic uint64_t *count;
static const char *file;
static useconds_t delay_us;

static void __attribute__ ((constructor)) begin (void)
{
  const char *path = getenv ("SYNC_COUNT"), *ms = getenv ("SYNC_MS");
  int fd = path != NULL ? open (path, O_RDWR | O_CLOEXEC) : -1;

  real = (int (*) (int))dlsym (RTLD_NEXT, "fdatasync");
  real_writev
      = (ssize_t (*) (int, const struct iovec *, int, off_t, int))dlsym (RTLD_NEXT, "pwritev2");
  file = getenv ("SYNC_FILE");
  delay_us = ms != NULL ? (useconds_t)(atof (ms) * 1000) : 0;
  if (fd == -1)
    return;
  void *p = mmap (NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  count = p != MAP_FAILED ? p : NULL;
  close (fd);
}

static void
delay (int fd)
{
  char link[64], path[4096];

  snprintf (link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink (link, path, sizeof path - 1);
  path[n > 0 ? n : 0] = '\0';
  if (count != NULL && file != NULL && strcmp (path, file) == 0)
    atomic_fetch_add (count, 1);
  if (delay_us != 0)
    usleep (delay_us);
}

int
fdatasync (int fd)
{
  delay (fd);
  return real (fd);
}

ssize_t
pwritev2 (int fd, const struct iovec *iov, int nr, off_t offset, int flags)
{
  if (flags & RWF_DSYNC)
    delay (fd);
  return real_writev (fd, iov, nr, offset, flags);
}
