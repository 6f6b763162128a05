/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Sessions that may write to a received disk.  See admission.h.
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "nbd-plugin/receive/admission.h"

void
admission_init (struct admission *a)
{
  memset (a, 0, sizeof *a);
  pthread_mutex_init (&a->lock, NULL);
  atomic_store (&a->generation, 1);
  atomic_store (&a->clean, 1);
}

void
admission_destroy (struct admission *a)
{
  pthread_mutex_destroy (&a->lock);
}

/* Under the lock: ID is not let in again. */
static void
never_again (struct admission *a, const char *id)
{
  strcpy (a->revoked[a->nr_revoked++ % ADMISSION_REMEMBERED], id);
}

/* Raise the generation, under the lock: who had it is revoked. */
static uint64_t
next_generation (struct admission *a, const char *id)
{
  if (a->id[0] != '\0')
    never_again (a, a->id);
  snprintf (a->id, sizeof a->id, "%s", id);
  return atomic_fetch_add (&a->generation, 1) + 1;
}

static bool
was_revoked (const struct admission *a, const char *id)
{
  for (unsigned i = 0; i < ADMISSION_REMEMBERED && i < a->nr_revoked; i++)
    if (strcmp (a->revoked[i], id) == 0)
      return true;
  return false;
}

/* Nothing in flight, seen while GENERATION was current?  Then say so: later mutations are its own.
 */
static bool
note_clean (struct admission *a, uint64_t generation)
{
  bool is_clean = false;

  pthread_mutex_lock (&a->lock);
  if (atomic_load (&a->generation) == generation)
    is_clean = atomic_load (&a->clean) == generation || atomic_load (&a->in_flight) == 0;
  if (is_clean)
    atomic_store (&a->clean, generation);
  pthread_mutex_unlock (&a->lock);
  return is_clean;
}

int
admission_drain (struct admission *a, uint64_t generation, int64_t limit_ms, admission_pause pause,
                 void *opaque)
{
  uint64_t begun = clock_ms ();

  while (!note_clean (a, generation)) {
    if (atomic_load (&a->generation) != generation)
      return ESTALE;
    if (limit_ms >= 0 && clock_ms () - begun >= (uint64_t)limit_ms)
      return ETIMEDOUT;
    int err = pause (opaque);
    if (err != 0)
      return err;
  }
  return 0;
}

int
admission_join (struct admission *a, const char *id, const char *last, uint64_t *generation,
                admission_pause pause, void *opaque)
{
  int err = 0;

  pthread_mutex_lock (&a->lock);
  if (atomic_load (&a->sealed))
    err = EPERM;
  else if (strcmp (a->id, id) == 0)
    *generation = atomic_load (&a->generation);
  else if (last != NULL && was_revoked (a, last)) {
    err = EBUSY;
    /* If it does not hear of that, its next session comes after this one. */
    if (!was_revoked (a, id))
      never_again (a, id);
  } else if (was_revoked (a, id))
    err = ESTALE;
  else
    *generation = next_generation (a, id);
  pthread_mutex_unlock (&a->lock);
  return err ? err : admission_drain (a, *generation, ADMISSION_LIMIT_MS, pause, opaque);
}

int
admission_join_alone (struct admission *a, _Atomic uint64_t *generation, admission_pause pause,
                      void *opaque)
{
  int err = 0;

  if (atomic_load (generation) == 0) {
    pthread_mutex_lock (&a->lock);
    if (atomic_load (&a->sealed))
      err = EPERM;
    else if (atomic_load (generation) == 0)
      atomic_store (generation, next_generation (a, ""));
    pthread_mutex_unlock (&a->lock);
  }
  if (err)
    return err;
  uint64_t mine = atomic_load (generation);
  if (atomic_load (&a->clean) == mine)
    return 0;
  err = admission_drain (a, mine, ADMISSION_LIMIT_MS, pause, opaque);
  return err == ESTALE ? 0 : err; /* revoked: admission_enter() says by whom */
}

int
admission_check (struct admission *a, uint64_t generation)
{
  if (atomic_load (&a->generation) == generation)
    return 0;
  return atomic_load (&a->sealed) ? EPERM : ESHUTDOWN;
}

int
admission_enter (struct admission *a, uint64_t generation)
{
  atomic_fetch_add (&a->in_flight, 1);
  int err = admission_check (a, generation);
  if (err)
    atomic_fetch_sub (&a->in_flight, 1);
  return err;
}

void
admission_leave (struct admission *a)
{
  atomic_fetch_sub (&a->in_flight, 1);
}

bool
admission_is_current (struct admission *a, const char *id, uint64_t *generation)
{
  pthread_mutex_lock (&a->lock);
  bool is = id[0] != '\0' && strcmp (a->id, id) == 0 && !atomic_load (&a->sealed);
  *generation = atomic_load (&a->generation);
  pthread_mutex_unlock (&a->lock);
  return is;
}

bool
admission_seal (struct admission *a)
{
  pthread_mutex_lock (&a->lock);
  bool first = !atomic_load (&a->sealed) && !atomic_load (&a->given_up);
  if (first) {
    atomic_store (&a->sealed, true);
    next_generation (a, "");
  }
  pthread_mutex_unlock (&a->lock);
  return first;
}

bool
admission_give_up (struct admission *a)
{
  pthread_mutex_lock (&a->lock);
  bool can = !atomic_load (&a->sealed);
  if (can)
    atomic_store (&a->given_up, true);
  pthread_mutex_unlock (&a->lock);
  return can;
}
