/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Proves of admission.c: when a new session is let in no mutation of an older one is under way,
 * however many sessions push; what was revoked stays revoked; nobody is let in after the seal; a
 * wait has a limit and can be given up; of two clients that both come back one is refused.
 */

#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <unistd.h>

#include "tests/unit/unit.h"

/* A pusher is stopped for a moment right after it looked at the generation: if that came before the
 * counting, a new session would slip in between. */
static _Thread_local unsigned pause_every, looks;

static uint64_t
paused (uint64_t value)
{
  if (pause_every != 0 && ++looks % pause_every == 0)
    usleep (500);
  return value;
}

#undef atomic_load
#define atomic_load(p) paused (atomic_load_explicit (p, memory_order_seq_cst))
#include "nbd-plugin/receive/admission.c"
#undef atomic_load
#define atomic_load(p) atomic_load_explicit (p, memory_order_seq_cst)

static int
short_pause (void *opaque)
{
  int *result = opaque;

  usleep (100);
  return result ? *result : 0;
}

static uint64_t
join (struct admission *a, const char *id)
{
  uint64_t generation = 0;

  cr_assert_eq (admission_join (a, id, NULL, &generation, short_pause, NULL), 0);
  return generation;
}

static int
join_after (struct admission *a, const char *id, const char *last)
{
  uint64_t generation;

  return admission_join (a, id, last, &generation, short_pause, NULL);
}

Test (admission, sessions)
{
  struct admission a;
  uint64_t new;
  int give_up = EINTR;

  admission_init (&a);
  uint64_t old = join (&a, "old");
  cr_assert_eq (admission_enter (&a, old), 0);
  uint64_t same = join (&a, "old"); /* its second connection does not wait for itself */
  cr_assert_eq (same, old);
  /* The next one is not let in while that is under way, but the old one is out at once. */
  cr_assert_eq (admission_join (&a, "new", NULL, &new, short_pause, &give_up), EINTR);
  cr_assert_eq (admission_enter (&a, old), ESHUTDOWN);
  cr_assert_eq (admission_check (&a, old), ESHUTDOWN);
  cr_assert_eq (admission_drain (&a, new, 0, short_pause, NULL), ETIMEDOUT);
  cr_assert_eq (admission_drain (&a, old, 0, short_pause, NULL), ESTALE);
  admission_leave (&a);
  cr_assert_eq (join (&a, "new"), new);
  cr_assert_eq (admission_enter (&a, new), 0);
  admission_leave (&a);
  cr_assert_eq (admission_join (&a, "old", NULL, &same, short_pause, NULL), ESTALE);
  admission_destroy (&a);
}

/* Two clients do not take it from one another in turn: who was there first and comes back is
 * refused, and only he.  A client that comes back to its own session, or to a server that was
 * started anew, is let in. */
Test (admission, two_clients)
{
  struct admission a;

  admission_init (&a);
  join (&a, "a1");
  cr_assert_eq (join_after (&a, "a2", "a1"), 0, "its own");
  cr_assert_eq (join_after (&a, "a2", "a1"), 0, "its second connection");
  cr_assert_eq (join_after (&a, "a4", "a3"), 0, "a3 was tried, and never arrived");
  join (&a, "b1");
  cr_assert_eq (join_after (&a, "a5", "a4"), EBUSY);
  cr_assert_eq (join_after (&a, "a5", "a4"), EBUSY, "the same again, or another connection");
  cr_assert_eq (join_after (&a, "a6", "a5"), EBUSY, "it has not heard that a5 was refused");
  cr_assert_eq (join_after (&a, "a7", "a6"), EBUSY);
  cr_assert_eq (join_after (&a, "b1", NULL), 0, "whose place it is still");
  cr_assert_eq (join_after (&a, "c2", "c1"), 0, "not known here: a server that was started anew");
  cr_assert_eq (join_after (&a, "b2", "b1"), EBUSY);
  join (&a, "d1"); /* whoever comes for the first time is let in: the one before may hang */
  admission_seal (&a);
  cr_assert_eq (join_after (&a, "d2", "d1"), EPERM);
  admission_destroy (&a);
}

Test (admission, alone)
{
  struct admission a;
  _Atomic uint64_t one = 0, two = 0, three = 0;

  admission_init (&a);
  cr_assert_eq (admission_join_alone (&a, &one, short_pause, NULL), 0);
  cr_assert_eq (admission_enter (&a, one), 0);
  admission_leave (&a);
  cr_assert_eq (admission_join_alone (&a, &two, short_pause, NULL), 0);
  cr_assert_neq (atomic_load (&one), atomic_load (&two));
  cr_assert_eq (admission_join_alone (&a, &one, short_pause, NULL), 0);
  cr_assert_eq (admission_enter (&a, one), ESHUTDOWN, "it was revoked, and does not come back");
  cr_assert_eq (admission_enter (&a, two), 0);
  admission_leave (&a);
  admission_seal (&a);
  cr_assert_eq (admission_join_alone (&a, &three, short_pause, NULL), EPERM);
  cr_assert_eq (admission_enter (&a, three), EPERM, "nobody has generation 0");
  admission_destroy (&a);
}

Test (admission, seal)
{
  struct admission a;
  uint64_t other;

  admission_init (&a);
  uint64_t mine = join (&a, "mine");
  cr_assert_eq (admission_enter (&a, mine), 0);
  cr_assert (admission_seal (&a));
  cr_assert_not (admission_seal (&a), "only the first one seals");
  cr_assert_not (admission_is_over (&a), "one is under way");
  cr_assert_eq (admission_enter (&a, mine), EPERM);
  cr_assert_eq (admission_join (&a, "mine", NULL, &other, short_pause, NULL), EPERM);
  cr_assert_eq (admission_join (&a, "other", NULL, &other, short_pause, NULL), EPERM);
  cr_assert_eq (admission_drain (&a, atomic_load (&a.generation), 0, short_pause, NULL), ETIMEDOUT);
  admission_leave (&a);
  cr_assert_eq (admission_drain (&a, atomic_load (&a.generation), -1, short_pause, NULL), 0);
  cr_assert (admission_is_over (&a));
  admission_destroy (&a);
}

Test (admission, given_up_or_sealed)
{
  struct admission a;

  admission_init (&a);
  cr_assert (admission_give_up (&a));
  cr_assert (admission_give_up (&a), "again");
  cr_assert_not (admission_seal (&a), "the disk is as good as gone");
  cr_assert_not (admission_is_over (&a), "no guest may write");
  admission_destroy (&a);
  admission_init (&a);
  cr_assert (admission_seal (&a));
  cr_assert_not (admission_give_up (&a), "the disk is its guest's");
  admission_destroy (&a);
}

/* ---- many sessions at once ------------------------------------------------------------------- */

#define PUSHERS 4
#define ROUNDS 150
#define PUSHES 20

static struct admission shared;
static _Atomic uint64_t below[PUSHERS]; /* the generation of the mutation under way, or 0 */
static _Atomic unsigned admitted, refused, overlaps;

static void *
push (void *opaque)
{
  unsigned me = (unsigned)(uintptr_t)opaque;

  pause_every = 4;
  for (unsigned round = 0; round < ROUNDS; round++) {
    char id[32];
    uint64_t generation;
    snprintf (id, sizeof id, "%u.%u", me, round);
    if (admission_join (&shared, id, NULL, &generation, short_pause, NULL) != 0)
      continue;
    atomic_fetch_add (&admitted, 1);
    for (unsigned i = 0; i < PUSHERS; i++) {
      uint64_t other = atomic_load (&below[i]);
      if (other != 0 && other < generation)
        atomic_fetch_add (&overlaps, 1);
    }
    for (unsigned i = 0; i < PUSHES; i++) {
      if (admission_enter (&shared, generation) != 0) {
        atomic_fetch_add (&refused, 1);
        break;
      }
      atomic_store (&below[me], generation);
      usleep (20);
      atomic_store (&below[me], 0);
      admission_leave (&shared);
    }
  }
  return NULL;
}

Test (admission, nobody_older_is_under_way)
{
  pthread_t threads[PUSHERS];

  admission_init (&shared);
  for (uintptr_t i = 0; i < PUSHERS; i++)
    cr_assert_eq (pthread_create (&threads[i], NULL, push, (void *)i), 0);
  for (unsigned i = 0; i < PUSHERS; i++)
    pthread_join (threads[i], NULL);
  cr_assert_gt (admitted, 0u);
  cr_assert_gt (refused, 0u, "nobody was revoked while it pushed: nothing was shown");
  cr_assert_eq (overlaps, 0u, "%u times a mutation of an older session was under way", overlaps);
  cr_assert_eq (atomic_load (&shared.in_flight), 0u);
  admission_destroy (&shared);
}
