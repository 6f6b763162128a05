/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * At which checkpoint a received disk stands.  See standing.h.
 *
 * Mutations and the one who records race: a mutation is counted in (or has sealed the disk), and
 * then looks whether something is known; who records makes it known, and then looks whether
 * anything is counted or sealed.  All four are sequentially consistent, so one of the two sees the
 * other.  A mutation that sees it waits for the lock, and removes the record before it begins.
 */

#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <nbdkit-filter.h>

#include "base/clock.h"
#include "nbd-plugin/receive/standing.h"

#define RECORD_BYTES 160
/* File systems take times from a clock that moves every few milliseconds.  A change that comes
 * later than this after the last one has another time. */
#define TIME_STEP_US 50000

void
standing_init (struct standing *s, struct admission *a)
{
  memset (s, 0, sizeof *s);
  pthread_mutex_init (&s->lock, NULL);
  s->admission = a;
  s->fd = -1;
}

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

void
standing_load (struct standing *s, int fd)
{
  char text[RECORD_BYTES] = "", now[RECORD_BYTES], uuid[UUID_TEXT_BYTES];
  struct stat st;

  if (fd == -1 || fstat (fd, &st) == -1 || !S_ISREG (st.st_mode))
    return;
  pthread_mutex_lock (&s->lock);
  s->fd = fd;
  ssize_t n = fgetxattr (fd, RECEIVE_STANDING_ATTRIBUTE, text, sizeof text - 1);
  if (n > 0 && sscanf (text, "1 %36[0-9a-f-]", uuid) == 1 && strlen (uuid) == UUID_TEXT_BYTES - 1
      && compose (fd, uuid, now) == 0 && strcmp (text, now) == 0) {
    memcpy (s->uuid, uuid, sizeof s->uuid);
    s->recorded = true;
    atomic_store (&s->known, true);
  } else if (n >= 0)
    nbdkit_debug ("the disk was changed since its checkpoint was recorded");
  pthread_mutex_unlock (&s->lock);
}

/* Remove the record for good.  0 or an errno, which was logged. */
static int
erase (struct standing *s)
{
  if ((fremovexattr (s->fd, RECEIVE_STANDING_ATTRIBUTE) == 0 || errno == ENODATA)
      && fsync (s->fd) == 0) {
    s->recorded = false;
    return 0;
  }
  int err = errno;
  nbdkit_error ("that the disk leaves its checkpoint cannot be recorded in its file: %s",
                strerror (err));
  return err;
}

int
standing_lose (struct standing *s, uint64_t generation)
{
  int err = 0;

  pthread_mutex_lock (&s->lock);
  if (atomic_load (&s->known)) {
    if (s->recorded)
      err = erase (s);
    bool declared = generation != 0 && generation == s->declared;
    if (err == 0 && declared)
      atomic_store (&s->allowed, generation);
    else if (err == 0) {
      s->declared = 0;
      atomic_store (&s->allowed, 0);
      atomic_store (&s->known, false);
    }
  }
  pthread_mutex_unlock (&s->lock);
  return err;
}

void
standing_look (struct standing *s, char uuid[UUID_TEXT_BYTES])
{
  pthread_mutex_lock (&s->lock);
  strcpy (uuid, atomic_load (&s->known) ? s->uuid : "");
  pthread_mutex_unlock (&s->lock);
}

int
standing_declare (struct standing *s, const char *id, const char *from, const char *to)
{
  uint64_t generation;
  int err = 0;

  pthread_mutex_lock (&s->lock);
  if (!admission_is_current (s->admission, id, &generation))
    err = ESHUTDOWN;
  else if (!atomic_load (&s->known) || strcmp (s->uuid, from) != 0)
    err = ESTALE;
  else {
    /* Until the first mutation the record of FROM is true as well. */
    strcpy (s->uuid, to);
    s->declared = generation;
    strcpy (s->declared_id, id);
    atomic_store (&s->allowed, 0);
  }
  pthread_mutex_unlock (&s->lock);
  return err;
}

void
standing_follow (struct standing *s, const char *id, const char *last, uint64_t generation)
{
  pthread_mutex_lock (&s->lock);
  if (s->declared != 0 && s->declared < generation && strcmp (s->declared_id, last) == 0) {
    s->declared = generation;
    strcpy (s->declared_id, id);
    atomic_store (&s->allowed, 0);
  }
  pthread_mutex_unlock (&s->lock);
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
  return ETIME; /* the file is from the future */
}

/* Under lock, and no mutation is in flight: write the record of s->uuid.  0 or an errno. */
static int
write_record (struct standing *s)
{
  char text[RECORD_BYTES];
  int err = outlast_time (s->fd);

  if (err != 0)
    return err;
  if (fsync (s->fd) == -1 || compose (s->fd, s->uuid, text) == -1)
    return errno;
  s->recorded = true; /* whatever happens next, the attribute may be there */
  if (fsetxattr (s->fd, RECEIVE_STANDING_ATTRIBUTE, text, strlen (text), 0) == 0
      && fsync (s->fd) == 0)
    return 0;
  err = errno;
  return err;
}

int
standing_record (struct standing *s, const char *id, const char *uuid)
{
  uint64_t generation;
  int err;

  pthread_mutex_lock (&s->lock);
  bool was_known = atomic_load (&s->known);
  uint64_t was_allowed = atomic_load (&s->allowed);
  if (s->fd == -1)
    err = ENOTSUP;
  else {
    atomic_store (&s->allowed, 0);
    atomic_store (&s->known, true);
    if (!admission_is_current (s->admission, id, &generation))
      err = ESHUTDOWN;
    else if (atomic_load (&s->admission->in_flight) != 0)
      err = EBUSY;
    else {
      strcpy (s->uuid, uuid);
      s->declared = 0;
      err = write_record (s);
      was_known = false;
    }
    /* Nothing is known any more, and nothing is left in the file; but if it cannot be removed, the
     * next mutation has to try again. */
    if (err != 0 && !was_known && (!s->recorded || erase (s) == 0))
      atomic_store (&s->known, false);
    else if (err != 0 && was_known)
      atomic_store (&s->allowed, was_allowed);
  }
  pthread_mutex_unlock (&s->lock);
  return err;
}

void
standing_unload (struct standing *s)
{
  pthread_mutex_lock (&s->lock);
  atomic_store (&s->allowed, 0);
  if (atomic_load (&s->known) && !s->recorded && s->fd != -1
      && atomic_load (&s->admission->in_flight) == 0 && write_record (s) != 0 && s->recorded)
    erase (s);
  pthread_mutex_unlock (&s->lock);
  pthread_mutex_destroy (&s->lock);
}
