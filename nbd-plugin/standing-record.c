/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * At which checkpoint a disk's file stands.  See standing-record.h.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/clock.h"
#include "control/receive-exports.h"
#include "nbd-plugin/standing-record.h"

#define RECORD_BYTES 160
/* File systems take times from a clock that moves every few milliseconds.  A change that comes
 * later than this after the last one has another time. */
#define TIME_STEP_US 50000

/* When the contents were changed last, nanoseconds since 1970. */
static int64_t
changed_ns (const struct stat *st)
{
  return (int64_t)st->st_mtim.tv_sec * (int64_t)NS_PER_S + (int64_t)st->st_mtim.tv_nsec;
}

/* What the record of UUID has to say as long as nobody has changed the file.  0 or -1. */
static int
compose (int fd, const char *uuid, char text[RECORD_BYTES])
{
  struct stat st;

  if (fstat (fd, &st) == -1)
    return -1;
  snprintf (text, RECORD_BYTES, "1 %s %" PRIu64 " %" PRIu64 " %" PRId64, uuid, (uint64_t)st.st_size,
            (uint64_t)st.st_ino, changed_ns (&st));
  return 0;
}

bool
standing_record_read (int fd, char uuid[UUID_TEXT_BYTES])
{
  char text[RECORD_BYTES] = "", now[RECORD_BYTES];

  ssize_t n = fgetxattr (fd, RECEIVE_STANDING_ATTRIBUTE, text, sizeof text - 1);
  return n > 0 && sscanf (text, "1 %36[0-9a-f-]", uuid) == 1 && strlen (uuid) == UUID_TEXT_BYTES - 1
         && compose (fd, uuid, now) == 0 && strcmp (text, now) == 0;
}

/* Wait until a change of the file would give it another time. */
static int
outlast_time (int fd)
{
  struct stat st;

  for (int tries = 0; tries < 100; tries++) {
    if (fstat (fd, &st) == -1)
      return errno;
    if (clock_date_us () - changed_ns (&st) / NS_PER_US > TIME_STEP_US)
      return 0;
    clock_sleep_ms (10);
  }
  return ETIME;
}

int
standing_record_write (int fd, const char *uuid)
{
  char text[RECORD_BYTES];
  int err = outlast_time (fd);

  if (err != 0)
    return err;
  if (fsync (fd) == -1 || compose (fd, uuid, text) == -1
      || fsetxattr (fd, RECEIVE_STANDING_ATTRIBUTE, text, strlen (text), 0) == -1
      || fsync (fd) == -1)
    return errno;
  return 0;
}

int
standing_record_erase (int fd)
{
  if (fremovexattr (fd, RECEIVE_STANDING_ATTRIBUTE) == -1)
    return errno == ENODATA || errno == ENOTSUP ? 0 : errno;
  return fsync (fd) == -1 ? errno : 0;
}
