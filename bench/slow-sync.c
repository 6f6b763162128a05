/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Preloaded into a server by bench/run state: each fdatasync, and each msync, which the server does
 * to its state file only, takes $SYNC_MS more, as on a device that is slow to flush.  Those of
 * $SYNC_FILE are counted in the first 8 bytes of $SYNC_COUNT.
 */

#include "config.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

static int (*real) (int);
static int (*real_msync) (void *, size_t, int);
static _Atomic uint64_t *count;
static const char *file;
static struct timespec slower;

static void __attribute__ ((constructor)) begin (void)
{
  const char *path = getenv ("SYNC_COUNT"), *ms = getenv ("SYNC_MS");
  int fd = path != NULL ? open (path, O_RDWR | O_CLOEXEC) : -1;

  real = (int (*) (int))dlsym (RTLD_NEXT, "fdatasync");
  real_msync = (int (*) (void *, size_t, int))dlsym (RTLD_NEXT, "msync");
  file = getenv ("SYNC_FILE");
  double s = ms != NULL ? atof (ms) / 1000 : 0;
  slower.tv_sec = (time_t)s;
  slower.tv_nsec = (long)((s - (double)slower.tv_sec) * 1e9);
  if (fd == -1)
    return;
  void *p = mmap (NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  count = p != MAP_FAILED ? p : NULL;
  close (fd);
}

static void
delay (bool counts)
{
  if (count != NULL && counts)
    atomic_fetch_add (count, 1);
  if (slower.tv_sec == 0 && slower.tv_nsec == 0)
    return;
  prctl (PR_SET_TIMERSLACK, 1UL); /* nanoseconds; it would be 50,000 */
  nanosleep (&slower, NULL);
}

int
fdatasync (int fd)
{
  char link[64], path[4096];

  snprintf (link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink (link, path, sizeof path - 1);
  path[n > 0 ? n : 0] = '\0';
  delay (file != NULL && strcmp (path, file) == 0);
  return real (fd);
}

int
msync (void *data, size_t length, int flags)
{
  delay (true);
  return real_msync (data, length, flags);
}
