/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Who may write to a disk that is being received: one mirror session at a time, a new one only when
 * every mutation of the old one has ended (R12), none once the disk is sealed.
 *
 * The right to write is a generation, a number that is never used twice.  A new session and the
 * seal raise it, which revokes whoever had the one before:
 *
 *   a mutation     count it in; then, if its generation is still the current one, do it, else
 *                  refuse it; count it out
 *   a new session  raise the generation; then wait until none is counted
 *
 * Both orders are sequentially consistent: either the mutation sees the new generation, or the
 * session sees the mutation's count.  The new session's own mutations come after its wait.
 *
 * Any thread may call anything.  Waits poll PAUSE (OPAQUE), which sleeps for about a millisecond
 * and returns an errno to give up with, else 0.
 */

#ifndef NBDMIRROR_NBD_PLUGIN_RECEIVE_ADMISSION_H
#define NBDMIRROR_NBD_PLUGIN_RECEIVE_ADMISSION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "control/receive-exports.h"

#define ADMISSION_LIMIT_MS 10000 /* for the old session's mutations to end */
#define ADMISSION_REMEMBERED 64  /* IDs that were revoked or refused, and are not let in again */

typedef int (*admission_pause) (void *opaque);

struct admission {
  pthread_mutex_t lock;          /* serialises changes of what follows */
  _Atomic uint64_t generation;   /* from 1 on; 0 is nobody's */
  _Atomic uint64_t clean;        /* the generation before which nothing is in flight */
  _Atomic bool sealed, given_up; /* never both: the first decides */
  _Atomic uint64_t in_flight;    /* mutations of mirror sessions */
  char id[RECEIVE_ID_MAX + 1];   /* of the session that has the generation; "" for one without */
  char revoked[ADMISSION_REMEMBERED][RECEIVE_ID_MAX + 1];
  unsigned nr_revoked; /* ever; the ring's position */
};

void admission_init (struct admission *a);
void admission_destroy (struct admission *a);

/* A connection of session ID opens: *GENERATION is its right to write.  The first one of a session
 * waits.  LAST (may be NULL) is the client's session before.  0, or an errno: EPERM sealed, ESTALE
 * an old session's, EBUSY another client's has taken the place of LAST, ETIMEDOUT the old session's
 * mutations do not end, or PAUSE's. */
int admission_join (struct admission *a, const char *id, const char *last, uint64_t *generation,
                    admission_pause pause, void *opaque);

/* The same for a connection that is a session of its own; *GENERATION is 0 before the first call,
 * which makes it one.  Several threads may call it with the same GENERATION. */
int admission_join_alone (struct admission *a, _Atomic uint64_t *generation, admission_pause pause,
                          void *opaque);

/* A mutation begins; 0: it is counted, and admission_leave() ends it.  Else ESHUTDOWN: revoked, or
 * EPERM: sealed. */
int admission_enter (struct admission *a, uint64_t generation);
void admission_leave (struct admission *a);
/* May it still?  As admission_enter(), for requests that change nothing. */
int admission_check (struct admission *a, uint64_t generation);

/* Is ID's session the one that may write?  True with its GENERATION. */
bool admission_is_current (struct admission *a, const char *id, uint64_t *generation);

/* No mirror session may write any more.  True if that is new: then admission_drain() is still to
 * come.  False, and it has no effect, if the disk was given up. */
bool admission_seal (struct admission *a);
/* The disk will be gone in a moment: it cannot be sealed any more, so no guest's write is answered.
 * False: it was sealed before. */
bool admission_give_up (struct admission *a);
/* Wait until nothing of the sessions before the current generation is in flight; LIMIT_MS < 0:
 * without limit.  0, ETIMEDOUT, ESTALE (a newer session came) or PAUSE's errno. */
int admission_drain (struct admission *a, uint64_t generation, int64_t limit_ms,
                     admission_pause pause, void *opaque);

/* Sealed, and nothing of any mirror session is in flight. */
static inline bool
admission_is_over (struct admission *a)
{
  return atomic_load (&a->sealed) && atomic_load (&a->clean) == atomic_load (&a->generation);
}

#endif
