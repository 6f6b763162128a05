/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See starting.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/adopt/served.h"
#include "cmd/adopt/starting.h"
#include "cmd/cmd.h"

#define WAIT_MS 90000 /* `serve` gives up a server that does not serve after 75 s */
#define LOOK_MS 20

static char *
path_of (const char *control)
{
  return text_printf ("%s.starting", control);
}

/* Is FD still the file at PATH?  Somebody may have removed it before we locked it. */
static bool
is_there (int fd, const char *path)
{
  struct stat its, there;

  return fstat (fd, &its) == 0 && stat (path, &there) == 0 && its.st_dev == there.st_dev
         && its.st_ino == there.st_ino;
}

int
starting_begin (const char *control)
{
  CLEANUP_TEXT char *path = path_of (control);

  for (;;) {
    int fd = open (path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd == -1)
      return -1;
    if (flock (fd, LOCK_EX | LOCK_NB) == -1) {
      fd_close (&fd);
      return -1;
    }
    if (is_there (fd, path))
      return fd;
    fd_close (&fd);
  }
}

static bool
is_locked (const char *path)
{
  CLEANUP_FD int fd = open (path, O_RDWR | O_CLOEXEC);

  return fd != -1 && flock (fd, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK;
}

void
starting_wait (const char *control, const json_t *record)
{
  CLEANUP_TEXT char *path = path_of (control);
  uint64_t end = clock_ms () + WAIT_MS;

  while (is_locked (path) && !served_is_there (control) && served_ending (control, record) == 0) {
    if (clock_ms () >= end) {
      cmd_warning ("%s: a server that an earlier run has started does not listen after %d s", path,
                   WAIT_MS / 1000);
      return;
    }
    clock_sleep_ms (LOOK_MS);
  }
}

void
starting_forget (const char *control)
{
  CLEANUP_TEXT char *path = path_of (control);

  unlink (path);
}
