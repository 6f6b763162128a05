/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The decision word: it changes once, for everybody that shares it, whoever is first; and nothing
 * but a sealed memfd of the right size is taken for one, since reading another could fault or be
 * changed behind our back.
 */

#include "config.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/text.h"
#include "control/decision.h"
#include "tests/unit/unit.h"

static struct decision *
create (void)
{
  char *error = NULL;
  struct decision *d = decision_create (&error);

  cr_assert_not_null (d, "decision_create: %s", error != NULL ? error : "?");
  return d;
}

static struct decision *
map (int fd)
{
  char *error = NULL;
  struct decision *d = decision_map (fd, &error);

  cr_assert_not_null (d, "decision_map: %s", error != NULL ? error : "?");
  return d;
}

static void
refused (int fd, const char *why)
{
  char *error = NULL;

  cr_assert_null (decision_map (fd, &error), "taken for a decision word");
  cr_assert_not_null (error);
  cr_assert_not_null (strstr (error, why), "'%s' does not say '%s'", error, why);
  text_free (error);
}

static int
memfd (off_t size, int seals)
{
  int fd = memfd_create ("test-decision", MFD_CLOEXEC | MFD_ALLOW_SEALING);

  cr_assert (fd >= 0 && ftruncate (fd, size) == 0 && fcntl (fd, F_ADD_SEALS, seals) == 0);
  return fd;
}

Test (decision, is_taken_once_and_seen_by_all)
{
  static const enum decision_value values[] = { DECISION_COMMIT, DECISION_ABORT };

  for (unsigned i = 0; i < 2; i++) {
    struct decision *a = create (), *b = map (a->fd);
    cr_assert_eq (decision_get (a), DECISION_UNDECIDED);
    cr_assert_eq (decision_get (b), DECISION_UNDECIDED);
    cr_assert_eq (decision_try (b, values[i]), values[i]);
    cr_assert_eq (decision_get (a), values[i]);
    cr_assert_eq (decision_try (a, values[1 - i]), values[i]); /* too late */
    cr_assert_eq (decision_try (b, values[1 - i]), values[i]);
    cr_assert_eq (decision_try (b, values[i]), values[i]); /* asking for the same again is fine */
    cr_assert_eq (decision_get (b), values[i]);
    decision_free (a);
    cr_assert_eq (decision_get (b), values[i]); /* whoever dies */
    decision_free (b);
  }
}

Test (decision, the_descriptor_stays_the_callers)
{
  struct decision *a = create ();
  int fd = dup (a->fd);
  struct decision *b = map (fd);

  cr_assert_neq (b->fd, fd);
  cr_assert (fcntl (b->fd, F_GETFD) & FD_CLOEXEC);
  cr_assert (fcntl (a->fd, F_GETFD) & FD_CLOEXEC);
  close (fd);
  decision_try (b, DECISION_ABORT);
  cr_assert_eq (decision_get (a), DECISION_ABORT);
  decision_free (b);
  decision_free (a);
  decision_free (NULL);
}

struct race {
  struct decision *d;
  enum decision_value value, got;
  pthread_barrier_t *start;
};

static void *
racer (void *opaque)
{
  struct race *r = opaque;

  pthread_barrier_wait (r->start);
  r->got = decision_try (r->d, r->value);
  return NULL;
}

Test (decision, has_one_winner)
{
  unsigned commits = 0;

  for (unsigned round = 0; round < 200; round++) {
    struct decision *a = create ();
    pthread_barrier_t start;
    pthread_t threads[4];
    struct race races[4];

    pthread_barrier_init (&start, NULL, 4);
    for (unsigned i = 0; i < 4; i++) {
      races[i] = (struct race){ map (a->fd), i % 2 ? DECISION_COMMIT : DECISION_ABORT, 0, &start };
      cr_assert_eq (pthread_create (&threads[i], NULL, racer, &races[i]), 0);
    }
    for (unsigned i = 0; i < 4; i++)
      pthread_join (threads[i], NULL);
    enum decision_value v = decision_get (a);
    cr_assert (v == DECISION_COMMIT || v == DECISION_ABORT);
    for (unsigned i = 0; i < 4; i++) {
      cr_assert_eq (races[i].got, v, "one side was told something else");
      decision_free (races[i].d);
    }
    commits += v == DECISION_COMMIT;
    pthread_barrier_destroy (&start);
    decision_free (a);
  }
  (void)commits; /* which of them wins is the machine's to say */
}

Test (decision, crosses_processes)
{
  struct decision *a = create ();
  pid_t pid = fork ();

  cr_assert_geq (pid, 0);
  if (pid == 0) {
    char *error = NULL;
    struct decision *b = decision_map (a->fd, &error);
    _exit (b != NULL && decision_try (b, DECISION_COMMIT) == DECISION_COMMIT ? 0 : 1);
  }
  int status;
  cr_assert_eq (waitpid (pid, &status, 0), pid);
  cr_assert_eq (status, 0);
  cr_assert_eq (decision_try (a, DECISION_ABORT), DECISION_COMMIT);
  decision_free (a);
}

Test (decision, nothing_else_is_taken_for_one)
{
  int fd = open ("/dev/null", O_RDWR | O_CLOEXEC);
  refused (fd, "not a memfd");
  close (fd);
  refused (-1, "duplicate");
  fd = memfd (4096, 0);
  refused (fd, "not sealed");
  close (fd);
  fd = memfd (4096, F_SEAL_GROW);
  refused (fd, "not sealed");
  close (fd);
  fd = memfd (4096, F_SEAL_SHRINK); /* may grow: no fault, but not ours */
  refused (fd, "not sealed");
  close (fd);
  fd = memfd (4095, F_SEAL_SHRINK | F_SEAL_GROW);
  refused (fd, "4096");
  close (fd);
  fd = memfd (0, F_SEAL_SHRINK | F_SEAL_GROW);
  refused (fd, "4096");
  close (fd);
  fd = memfd (8192, F_SEAL_SHRINK | F_SEAL_GROW);
  refused (fd, "4096");
  close (fd);
}

Test (decision, cannot_be_made_smaller)
{
  struct decision *a = create ();

  cr_assert_eq (ftruncate (a->fd, 0), -1);
  cr_assert_eq (ftruncate (a->fd, 8192), -1);
  cr_assert_eq (fcntl (a->fd, F_ADD_SEALS, F_SEAL_WRITE), -1); /* nor frozen */
  cr_assert_eq (decision_try (a, DECISION_COMMIT), DECISION_COMMIT);
  decision_free (a);
}
