/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Budgets: together the members spend what the budget allows and no more; each gets its share;
 * nobody waits for one that is idle, stopped or dead; and a file that is not ours is refused.  Time
 * is the test's own.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/unit.h"

#include "base/clock.h"
#include "base/text.h"
#include "budget/budget.h"
#include "budget/share.h"
#include "budget/store.h"

#define MS UINT64_C (1000000)
#define SECOND (1000 * MS)
#define REQUEST 65536u
#define RATE (UINT64_C (64) << 20)
#define MANY 40

/* ---- shares ---- */

static double
sum_of (double rate, unsigned nr, const struct share_claim *claims)
{
  double sum = 0;

  for (unsigned i = 0; i < nr; i++)
    sum += share_of (rate, nr, claims, i);
  return sum;
}

static void
assert_near (double a, double b, double part)
{
  cr_assert (fabs (a - b) <= part * fabs (b), "%g is not %g", a, b);
}

Test (share, by_weight_and_demand)
{
  const struct share_claim two[] = { { 1, INFINITY }, { 3, INFINITY } };
  assert_near (share_of (100, 2, two, 0), 25, 1e-9);
  assert_near (share_of (100, 2, two, 1), 75, 1e-9);

  const struct share_claim modest[] = { { 1, 10 }, { 1, INFINITY }, { 2, INFINITY }, { 1, 12 } };
  assert_near (share_of (100, 4, modest, 0), 10, 1e-9);
  assert_near (share_of (100, 4, modest, 3), 12, 1e-9);
  assert_near (share_of (100, 4, modest, 1), 26, 1e-9);
  assert_near (share_of (100, 4, modest, 2), 52, 1e-9);
  const struct share_claim little[] = { { 1, 10 }, { 1, 20 } };
  assert_near (sum_of (100, 2, little), 30, 1e-9);
}

/* Whatever they claim: never more than there is, and all of it if somebody could use it. */
Test (share, adds_up)
{
  unsigned seed = 1;

  for (unsigned round = 0; round < 2000; round++) {
    struct share_claim claims[MANY];
    unsigned nr = 1 + (unsigned)rand_r (&seed) % MANY;
    double demand = 0;

    for (unsigned i = 0; i < nr; i++) {
      bool hungry = rand_r (&seed) % 3 == 0;
      claims[i] = (struct share_claim){ 1 + rand_r (&seed) % 100,
                                        hungry ? INFINITY : (double)(rand_r (&seed) % 1000) };
      demand += claims[i].demand;
    }
    assert_near (sum_of (5000, nr, claims), demand < 5000 ? demand : 5000, 1e-6);
  }
}

/* ---- members ---- */

static char dir[40];

static void
set_up (void)
{
  strcpy (dir, "/tmp/nbdmirror-budget-XXXXXX");
  cr_assert_not_null (mkdtemp (dir));
  setenv ("NBDMIRROR_BUDGETS", dir, 1);
  cr_assert_eq (budget_set ("b", RATE, NULL), 0);
}

static void
tear_down (void)
{
  char command[100];

  snprintf (command, sizeof command, "rm -rf %s", dir);
  cr_assert_eq (system (command), 0);
}

/* A test with a directory of its own, and the budget "b" in it. */
#define BUDGET_TEST(name)                                                                          \
  static void test_##name (void);                                                                  \
  Test (budget, name)                                                                              \
  {                                                                                                \
    set_up ();                                                                                     \
    test_##name ();                                                                                \
    tear_down ();                                                                                  \
  }                                                                                                \
  static void test_##name (void)

struct member {
  struct budget *b;
  uint64_t most; /* bytes a second that it sends at most; 0: as much as it may */
  uint64_t sent, begun;
  bool stopped;
};

static void
join (struct member *m, unsigned weight)
{
  char *error = NULL;

  *m = (struct member){ .b = budget_join ("b", weight, "a job", &error) };
  cr_assert_not_null (m->b, "%s", error);
}

/* What M sends at NOW. */
static void
send_some (struct member *m, uint64_t now)
{
  if (m->begun == 0)
    m->begun = now;
  while (!m->stopped
         && (m->most == 0 || m->sent <= (double)m->most * (double)(now - m->begun) / SECOND)
         && budget_wait (m->b, now) == 0) {
    budget_take (m->b, REQUEST, now);
    m->sent += REQUEST;
  }
}

static uint64_t
run (struct member *members, unsigned nr, uint64_t *now, uint64_t span)
{
  uint64_t before = 0, after = 0;

  for (unsigned i = 0; i < nr; i++)
    before += members[i].sent;
  for (uint64_t end = *now + span; *now < end; *now += MS)
    for (unsigned i = 0; i < nr; i++)
      send_some (&members[(i + *now / MS) % nr], *now);
  for (unsigned i = 0; i < nr; i++)
    after += members[i].sent;
  return after - before;
}

static void
leave (struct member *members, unsigned nr)
{
  for (unsigned i = 0; i < nr; i++)
    budget_leave (members[i].b);
}

BUDGET_TEST (one_gets_it_all_and_no_more)
{
  struct member m;
  uint64_t now = 1000 * SECOND;

  join (&m, 1);
  uint64_t sent = run (&m, 1, &now, 5 * SECOND);
  cr_assert_leq (sent, RATE * 5 + RATE / 10 + REQUEST);
  assert_near ((double)sent, RATE * 5.0, 0.03);
  leave (&m, 1);
}

BUDGET_TEST (fair_by_weight_and_exact_in_sum)
{
  struct member m[MANY];
  uint64_t now = 1000 * SECOND;

  for (unsigned i = 0; i < MANY; i++)
    join (&m[i], i % 2 == 0 ? 1 : 3);
  run (m, MANY, &now, SECOND);
  for (unsigned i = 0; i < MANY; i++)
    m[i].sent = 0;
  uint64_t sent = run (m, MANY, &now, 20 * SECOND);
  cr_assert_leq (sent, RATE * 20 + RATE / 10 + MANY * REQUEST);
  assert_near ((double)sent, RATE * 20.0, 0.03);
  for (unsigned i = 0; i < MANY; i++)
    assert_near ((double)m[i].sent, RATE * 20.0 / (MANY * 2) * (i % 2 == 0 ? 1 : 3), 0.15);
  leave (m, MANY);
}

/* Nobody knows of the others yet: only the account keeps the sum. */
BUDGET_TEST (many_that_begin_at_once_keep_the_sum)
{
  struct member m[MANY];
  uint64_t now = 1000 * SECOND;

  for (unsigned i = 0; i < MANY; i++)
    join (&m[i], 1);
  uint64_t sent = run (m, MANY, &now, 45 * MS);
  cr_assert_leq (sent, RATE * 45 / 1000 + RATE / 10 + 2 * REQUEST);
  leave (m, MANY);
}

/* The least budget, for many who send much at a time: a debt lasts for an hour.  All of them look
 * before anybody pays, as processes may. */
BUDGET_TEST (many_keep_a_small_budget)
{
  enum { NR = 200, LARGE = 1 << 20 };
  static struct member m[NR];
  static bool may[NR];
  uint64_t now = 1000 * SECOND, sent = 0, begun = now;

  cr_assert_eq (budget_set ("b", BUDGET_RATE_MIN, NULL), 0);
  for (unsigned i = 0; i < NR; i++)
    join (&m[i], 1);
  for (; now < begun + 5000 * SECOND; now += 4 * SECOND) {
    for (unsigned i = 0; i < NR; i++)
      may[i] = budget_wait (m[i].b, now) == 0;
    for (unsigned i = 0; i < NR; i++)
      if (may[i]) {
        budget_take (m[i].b, LARGE, now);
        sent += LARGE;
      }
  }
  cr_assert_leq (sent, BUDGET_RATE_MIN * 5000.0 + NR * (double)LARGE);
  cr_assert_geq (sent, BUDGET_RATE_MIN * 4500.0);
  /* Who may send without limit owes nothing afterwards. */
  cr_assert_eq (budget_set ("b", 0, NULL), 0);
  cr_assert_eq (budget_wait (m[0].b, now), 0);
  cr_assert_eq (budget_set ("b", RATE, NULL), 0);
  now += 2 * SECOND;
  cr_assert_eq (budget_wait (m[0].b, now), 0);
  leave (m, NR);
}

BUDGET_TEST (what_one_leaves_is_for_the_others)
{
  struct member m[3];
  uint64_t now = 1000 * SECOND;

  for (unsigned i = 0; i < 3; i++)
    join (&m[i], 1);
  m[0].most = RATE / 20;
  run (m, 3, &now, SECOND);
  for (unsigned i = 0; i < 3; i++)
    m[i].sent = m[i].begun = 0;
  run (m, 3, &now, 10 * SECOND);
  assert_near ((double)m[0].sent, RATE * 10 / 20.0, 0.05);
  assert_near ((double)m[1].sent, RATE * 10 * 0.475, 0.06);
  assert_near ((double)m[2].sent, RATE * 10 * 0.475, 0.06);
  leave (m, 3);
}

/* One that only asks, as a copy whose input comes slowly did, and requests that take longer to pay
 * than it rests between two questions: it waits for the other's debts, never for its own. */
BUDGET_TEST (who_spends_nothing_is_not_hungry)
{
  enum { SLOW = 1 << 20, LARGE = 256 << 10 };
  struct member m[2];
  uint64_t now = 1000 * SECOND, sent = 0;

  cr_assert_eq (budget_set ("b", SLOW, NULL), 0);
  join (&m[0], 1);
  join (&m[1], 1);
  for (uint64_t begun = now; now < begun + 62 * SECOND; now += MS) {
    if (now % (100 * MS) == 0)
      budget_wait (m[1].b, now);
    while (budget_wait (m[0].b, now) == 0) {
      budget_take (m[0].b, LARGE, now);
      sent += now < begun + 2 * SECOND ? 0 : LARGE;
    }
  }
  assert_near ((double)sent, SLOW * 60.0 * 0.98, 0.04);
  leave (m, 2);
}

/* A request takes longer to pay than a look lasts: who waits for the other's goes on to be hungry.
 */
BUDGET_TEST (a_small_budget_keeps_the_weights)
{
  enum { LARGE = 1 << 20 };
  static const uint64_t rates[] = { 1 << 20, 1 << 17 };

  for (unsigned r = 0; r < sizeof rates / sizeof rates[0]; r++) {
    struct member m[2];
    uint64_t now = 1000 * SECOND, span = 400 * LARGE / rates[r] * SECOND;

    cr_assert_eq (budget_set ("b", rates[r], NULL), 0);
    join (&m[0], 1);
    join (&m[1], 4);
    for (uint64_t end = now + span; now < end; now += 10 * MS)
      for (unsigned i = 0; i < 2; i++)
        if (budget_wait (m[i].b, now) == 0) {
          budget_take (m[i].b, LARGE, now);
          m[i].sent += LARGE;
        }
    assert_near ((double)m[1].sent, 4.0 * (double)m[0].sent, 0.1);
    leave (m, 2);
  }
}

/* One that sends little, in small requests, meets the large ones of the other: it needs no half. */
BUDGET_TEST (a_modest_member_leaves_a_small_budget)
{
  enum { SLOW = 1 << 20, LARGE = 1 << 20, SMALL = 64 << 10 };
  struct member m[2];
  uint64_t now = 1000 * SECOND, span = 300 * SECOND;

  cr_assert_eq (budget_set ("b", SLOW, NULL), 0);
  join (&m[0], 1);
  join (&m[1], 1);
  for (uint64_t begun = now; now < begun + span; now += 10 * MS) {
    if (m[1].sent < SLOW / 20 * ((now - begun) / SECOND) && budget_wait (m[1].b, now) == 0) {
      budget_take (m[1].b, SMALL, now);
      m[1].sent += SMALL;
    }
    if (budget_wait (m[0].b, now) == 0) {
      budget_take (m[0].b, LARGE, now);
      m[0].sent += LARGE;
    }
  }
  assert_near ((double)m[0].sent, SLOW * 300.0 * 0.8, 0.08);
  leave (m, 2);
}

/* Another thread of the same process has looked in between, with a later clock.  A modest member
 * would claim everything then. */
BUDGET_TEST (a_clock_that_was_read_before_the_last_look_changes_nothing)
{
  struct member m[2];
  uint64_t now = 1000 * SECOND;

  join (&m[0], 1);
  join (&m[1], 1);
  m[0].most = RATE / 20;
  run (m, 2, &now, 2 * SECOND);
  budget_wait (m[0].b, now);
  budget_wait (m[0].b, now - 60 * MS);
  budget_wait (m[1].b, now + 60 * MS);
  assert_near ((double)budget_share (m[1].b), RATE * 0.94, 0.02);
  leave (m, 2);
}

/* One is stopped, or dead, at any instant: also with all that it had paid for unsent. */
BUDGET_TEST (nobody_waits_for_one_that_is_gone)
{
  struct member m[2];
  uint64_t now = 1000 * SECOND;

  for (unsigned how = 0; how < 3; how++) {
    join (&m[0], 100);
    join (&m[1], 1);
    run (m, 2, &now, 2 * SECOND);
    m[0].stopped = true;
    if (how == 1)
      budget_take (m[0].b, 1u << 20, now);
    if (how == 2)
      budget_leave (m[0].b);
    run (m, 2, &now, 1200 * MS);
    m[1].sent = 0;
    uint64_t sent = run (&m[1], 1, &now, 2 * SECOND);
    assert_near ((double)sent, RATE * 2.0, 0.06);
    budget_leave (m[1].b);
    if (how != 2)
      budget_leave (m[0].b);
  }
}

BUDGET_TEST (what_is_given_back_can_be_spent)
{
  struct member m;
  uint64_t now = 1000 * SECOND, kept = 0;

  join (&m, 1);
  for (uint64_t end = now + 5 * SECOND; now < end; now += MS)
    while (budget_wait (m.b, now) == 0) {
      budget_take (m.b, REQUEST, now);
      budget_give (m.b, REQUEST / 2);
      kept += REQUEST / 2;
    }
  assert_near ((double)kept, RATE * 5.0, 0.03);
  leave (&m, 1);
}

BUDGET_TEST (changes_while_it_is_used)
{
  struct member m[2];
  struct budget_file f;
  uint64_t now = clock_ns ();
  int d;

  join (&m[0], 1);
  join (&m[1], 1);
  cr_assert_eq (budget_directory (false, &d, NULL), 0);
  cr_assert_eq (budget_file_open (d, "b", &f, NULL), 0);
  run (m, 2, &now, SECOND);
  budget_file_set_rate (&f, RATE * 4, now);
  run (m, 2, &now, 200 * MS);
  assert_near ((double)run (m, 2, &now, 2 * SECOND), RATE * 8.0, 0.05);
  budget_file_set_rate (&f, RATE / 4, now);
  run (m, 2, &now, 500 * MS);
  assert_near ((double)run (m, 2, &now, 4 * SECOND), RATE * 1.0, 0.08);
  cr_assert_eq (budget_set ("b", 0, NULL), 0);
  budget_file_close (&f);
  close (d);
  cr_assert_eq (budget_wait (m[0].b, now), 0);
  budget_take (m[0].b, 1u << 30, now);
  cr_assert_eq (budget_wait (m[1].b, now), 0);
  cr_assert_eq (budget_share (m[0].b), 0);
  leave (m, 2);
}

/* The host has just started, so its clock is low. */
BUDGET_TEST (gives_back_what_was_taken_without_a_limit)
{
  struct member m;
  struct budget_file f;
  uint64_t now = 5 * SECOND;
  int d;

  join (&m, 1);
  cr_assert_eq (budget_directory (false, &d, NULL), 0);
  cr_assert_eq (budget_file_open (d, "b", &f, NULL), 0);
  budget_file_set_rate (&f, 0, now);
  cr_assert_eq (budget_wait (m.b, now), 0);
  budget_take (m.b, 32u << 20, now);
  budget_file_set_rate (&f, 16384, now);
  budget_give (m.b, 32u << 20);
  cr_assert_eq (budget_wait (m.b, now + SECOND), 0);
  budget_file_close (&f);
  close (d);
  leave (&m, 1);
}

/* What only a fault or an attack on one's own file could write must not stop the job. */
BUDGET_TEST (an_account_far_in_the_future_is_not_believed)
{
  struct member m;
  struct budget_file f;
  uint64_t now = 1000 * SECOND;
  char *error = NULL;

  join (&m, 1);
  int d;
  cr_assert_eq (budget_directory (false, &d, &error), 0);
  cr_assert_eq (budget_file_open (d, "b", &f, &error), 0);
  atomic_store (&f.memory->paid_ns, now + 3600 * SECOND);
  atomic_store (&f.memory->top, 4000000000u);
  atomic_store (&f.memory->slots[7].wanted_ns, now);
  atomic_store (&f.memory->slots[7].weight, 4000000000u);
  assert_near ((double)run (&m, 1, &now, 5 * SECOND), RATE * 5.0, 0.06);
  budget_file_close (&f);
  close (d);
  leave (&m, 1);
}

/* ---- the file ---- */

static void
assert_not_joined (const char *name, const char *why)
{
  char *error = NULL;
  struct budget *b = budget_join (name, 1, "x", &error);

  cr_assert_null (b, "%s was joined", name);
  cr_assert_not_null (strstr (error, why), "%s: %s", name, error);
  text_free (error);
}

/* Who removes it has all slots for a moment: it is gone, not full. */
BUDGET_TEST (what_is_being_removed_is_not_full)
{
  struct budget_file f;
  int d;

  cr_assert_eq (budget_directory (false, &d, NULL), 0);
  cr_assert_eq (budget_file_open (d, "b", &f, NULL), 0);
  cr_assert (budget_lock (f.fd, 0, BUDGET_SLOTS));
  assert_not_joined ("b", "there is no budget b");
  budget_file_close (&f);
  close (d);
}

BUDGET_TEST (what_is_planted_is_refused)
{
  char path[100], other[100];

  assert_not_joined ("none", "there is no budget none");
  assert_not_joined ("../b", "begins with");
  snprintf (path, sizeof path, "%s/b", dir);
  snprintf (other, sizeof other, "%s/link", dir);
  cr_assert_eq (symlink (path, other), 0);
  assert_not_joined ("link", "symbolic link");
  snprintf (other, sizeof other, "%s/fifo", dir);
  cr_assert_eq (mkfifo (other, 0600), 0);
  assert_not_joined ("fifo", "none of nbdmirror");
  snprintf (other, sizeof other, "%s/short", dir);
  close (open (other, O_CREAT | O_WRONLY, 0600));
  assert_not_joined ("short", "none of nbdmirror");
  cr_assert_eq (truncate (other, sizeof (struct budget_memory)), 0);
  assert_not_joined ("short", "none of nbdmirror");
  cr_assert_eq (chmod (path, 0622), 0);
  assert_not_joined ("b", "open to other users");
  cr_assert_eq (chmod (path, 0600), 0);
  cr_assert_eq (chmod (dir, 0770), 0);
  assert_not_joined ("b", "open to other users");
  cr_assert_eq (chmod (dir, 0700), 0);
  if (geteuid () == 0) {
    cr_assert_eq (chown (path, 65534, 65534), 0);
    assert_not_joined ("b", "belongs to another user");
    cr_assert_eq (chown (path, 0, 0), 0);
    cr_assert_eq (chown (dir, 65534, 65534), 0);
    assert_not_joined ("b", "belongs to another user");
    cr_assert_eq (budget_set ("new", RATE, NULL), -1);
    cr_assert_eq (chown (dir, 0, 0), 0);
  }
  struct member m;
  join (&m, 1);
  leave (&m, 1);
}

BUDGET_TEST (is_not_removed_while_it_is_used)
{
  struct member m;
  char *error = NULL;

  join (&m, 1);
  cr_assert_eq (budget_remove ("b", &error), -1);
  cr_assert_not_null (strstr (error, "members"));
  text_free (error);
  leave (&m, 1);
  cr_assert_eq (budget_remove ("b", NULL), 0);
  assert_not_joined ("b", "there is no budget b");
}

/* Between opening it and removing it somebody else has removed it, and made it anew. */
BUDGET_TEST (what_was_made_anew_is_not_removed)
{
  struct budget_file f;
  struct budget_view v;
  struct member m;
  int d;

  cr_assert_eq (budget_directory (false, &d, NULL), 0);
  cr_assert_eq (budget_file_open (d, "b", &f, NULL), 0);
  cr_assert_eq (budget_remove ("b", NULL), 0);
  cr_assert_eq (budget_set ("b", RATE, NULL), 0);
  join (&m, 1);
  cr_assert_eq (budget_file_remove (d, "b", &f, NULL), 1);
  budget_file_close (&f);
  close (d);
  cr_assert_eq (budget_look ("b", &v, NULL), 0);
  cr_assert_eq (v.nr_members, 1);
  budget_view_free (&v);
  leave (&m, 1);
}

/* A member that is stopped, or whose file an older clock was written to, takes no part for whoever
 * shares and for whoever looks. */
BUDGET_TEST (is_active_for_a_second)
{
  struct budget_slot s = { .wanted_ns = 100 * SECOND };

  cr_assert (budget_is_active (&s, 101 * SECOND));
  cr_assert_not (budget_is_active (&s, 101 * SECOND + 1));
  cr_assert (budget_is_active (&s, 99 * SECOND));
  cr_assert_not (budget_is_active (&s, 99 * SECOND - 1));
  s.wanted_ns = 0;
  cr_assert_not (budget_is_active (&s, SECOND / 2));
}

BUDGET_TEST (has_room_for_many_and_says_when_it_is_full)
{
  static struct member m[BUDGET_SLOTS];
  struct budget_view v;
  char *error = NULL;

  for (unsigned i = 0; i < 200; i++)
    join (&m[i], 1);
  cr_assert_eq (budget_look ("b", &v, &error), 0);
  cr_assert_eq (v.nr_members, 200);
  budget_view_free (&v);
  budget_leave (m[17].b);
  join (&m[17], 1); /* the place of one that left */
  cr_assert_eq (budget_look ("b", &v, &error), 0);
  cr_assert_eq (v.nr_members, 200);
  budget_view_free (&v);
  leave (m, 200);
}

/* Members that are killed while they spend as fast as they can, again and again. */
BUDGET_TEST (survives_kills)
{
  struct member m;
  uint64_t now = clock_ns ();

  for (unsigned i = 0; i < 30; i++) {
    pid_t pid = fork ();
    if (pid == 0) {
      struct budget *b = budget_join ("b", 50, "killed", NULL);
      uint64_t start = clock_ns ();
      /* Its clock runs as fast as it can, but never ahead of ours below. */
      for (uint64_t t = start; t < start + 60 * SECOND; t += MS)
        if (budget_wait (b, t) == 0)
          budget_take (b, 1, t);
      for (;;)
        pause ();
    }
    clock_sleep_ms (3);
    kill (pid, SIGKILL);
    waitpid (pid, NULL, 0);
  }
  now = clock_ns () + 70 * SECOND;
  join (&m, 1);
  assert_near ((double)run (&m, 1, &now, 5 * SECOND), RATE * 5.0, 0.05);
  struct budget_view v;
  cr_assert_eq (budget_look ("b", &v, NULL), 0);
  cr_assert_eq (v.nr_members, 1);
  budget_view_free (&v);
  leave (&m, 1);
}
