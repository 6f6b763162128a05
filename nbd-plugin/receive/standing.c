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
#include <string.h>
#include <sys/stat.h>

#include <nbdkit-filter.h>

#include "nbd-plugin/receive/standing.h"
#include "nbd-plugin/standing-record.h"

void
standing_init (struct standing *s, struct admission *a)
{
  memset (s, 0, sizeof *s);
  pthread_mutex_init (&s->lock, NULL);
  s->admission = a;
  s->fd = -1;
}

void
standing_load (struct standing *s, int fd)
{
  char uuid[UUID_TEXT_BYTES];
  struct stat st;

  if (fd == -1 || fstat (fd, &st) == -1 || !S_ISREG (st.st_mode))
    return;
  pthread_mutex_lock (&s->lock);
  s->fd = fd;
  if (standing_record_read (fd, uuid)) {
    memcpy (s->uuid, uuid, sizeof s->uuid);
    s->recorded = true;
    atomic_store (&s->known, true);
  }
  pthread_mutex_unlock (&s->lock);
}

/* Remove the record for good.  0 or an errno, which was logged. */
static int
erase (struct standing *s)
{
  int err = standing_record_erase (s->fd);

  if (err != 0)
    nbdkit_error ("that the disk leaves its checkpoint cannot be recorded in its file: %s",
                  strerror (err));
  else
    s->recorded = false;
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

/* Under lock, and no mutation is in flight: write the record of s->uuid.  0 or an errno. */
static int
write_record (struct standing *s)
{
  s->recorded = true; /* whatever happens, the attribute may be there */
  return standing_record_write (s->fd, s->uuid);
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
