/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Which backups are kept: the examples that people know from borg, clocks that jump, and what must
 * hold for any series of backups.
 */

#include "config.h"

#include <stdlib.h>
#include <time.h>

#include "tests/unit/unit.h"

#include "backup/retention.h"

#define MAX 400
#define HOUR 3600
#define DAY (24 * HOUR)
#define NOON INT64_C (1735732800) /* 2025-01-01 12:00:00 UTC, a Wednesday */

/* As retention_apply(), in UTC. */
static void
apply (struct retention_backup *backups, size_t nr, const unsigned keep[RETENTION_RULES])
{
  setenv ("TZ", "UTC", 1);
  tzset ();
  retention_apply (backups, nr, keep);
}

static size_t
count (const struct retention_backup *b, size_t nr, enum retention_rule rule)
{
  size_t n = 0;

  for (size_t i = 0; i < nr; i++)
    n += b[i].kept_by == rule;
  return n;
}

/* NR backups, STEP seconds apart, the last one at END. */
static void
series (struct retention_backup *b, size_t nr, int64_t end, int64_t step)
{
  for (size_t i = 0; i < nr; i++)
    b[i] = (struct retention_backup){ .time_s = end - (int64_t)(nr - 1 - i) * step };
}

Test (retention, nothing_asked_for_keeps_nothing)
{
  struct retention_backup b[3];
  const unsigned keep[RETENTION_RULES] = { 0 };

  series (b, 3, NOON, DAY);
  b[1].protected = true;
  apply (b, 3, keep);
  cr_assert_eq (b[0].kept_by, RETENTION_NONE);
  cr_assert_eq (b[1].kept_by, RETENTION_PROTECTED);
  cr_assert_eq (b[2].kept_by, RETENTION_NONE);
  apply (b, 0, keep);
}

Test (retention, one_of_each_day_is_the_newest)
{
  struct retention_backup b[48];
  const unsigned keep[RETENTION_RULES] = { [RETENTION_DAILY] = 2 };

  series (b, 48, NOON, HOUR); /* the last one at noon, the days before until 23:00 */
  apply (b, 48, keep);
  cr_assert_eq (count (b, 48, RETENTION_DAILY), 2);
  cr_assert_eq (b[47].kept_by, RETENTION_DAILY);
  cr_assert_eq (b[47 - 13].kept_by, RETENTION_DAILY, "23:00 of the day before");
}

Test (retention, rules_add_up)
{
  struct retention_backup b[365];
  const unsigned keep[RETENTION_RULES]
      = { [RETENTION_DAILY] = 14, [RETENTION_MONTHLY] = 6, [RETENTION_YEARLY] = 1 };

  series (b, 365, NOON + 364 * (int64_t)DAY, DAY); /* each day of 2025 */
  apply (b, 365, keep);
  cr_assert_eq (count (b, 365, RETENTION_DAILY), 14);
  for (size_t i = 365 - 14; i < 365; i++)
    cr_assert_eq (b[i].kept_by, RETENTION_DAILY);
  /* December's newest is kept already, so the months are November to June. */
  static const unsigned last_days[] = { 334, 304, 273, 243, 212, 181 };
  for (size_t i = 0; i < 6; i++)
    cr_assert_eq (b[last_days[i] - 1].kept_by, RETENTION_MONTHLY, "day %u", last_days[i]);
  /* The year's newest is kept already, and there is no other year: so the oldest is. */
  cr_assert_eq (b[0].kept_by, RETENTION_YEARLY);
  cr_assert_eq (count (b, 365, RETENTION_NONE), 365 - 14 - 6 - 1);
}

Test (retention, weeks_are_those_of_iso)
{
  struct retention_backup b[3];
  const unsigned keep[RETENTION_RULES] = { [RETENTION_WEEKLY] = 1 };

  /* Sunday, 29 December 2024 is in week 52; the Monday after it in week 1 of 2025. */
  series (b, 3, NOON, DAY);
  b[0].time_s = NOON - 3 * DAY;
  b[1].time_s = NOON - 2 * DAY;
  apply (b, 3, keep);
  cr_assert_eq (b[2].kept_by, RETENTION_WEEKLY);
  cr_assert_eq (b[1].kept_by, RETENTION_NONE, "the same week");
  const unsigned two[RETENTION_RULES] = { [RETENTION_WEEKLY] = 2 };
  apply (b, 3, two);
  cr_assert_eq (b[0].kept_by, RETENTION_WEEKLY);
}

Test (retention, a_clock_that_was_set_back)
{
  struct retention_backup b[4];
  const unsigned keep[RETENTION_RULES] = { [RETENTION_LAST] = 2 };

  series (b, 4, NOON, DAY);
  b[1].time_s = NOON + 10 * (int64_t)DAY; /* made by a clock that was wrong */
  apply (b, 4, keep);
  cr_assert_eq (b[3].kept_by, RETENTION_LAST, "the newest is the one that was made last");
  cr_assert_eq (b[2].kept_by, RETENTION_LAST);
  cr_assert_eq (b[1].kept_by, RETENTION_NONE);
}

/* Whatever is asked for, of whatever series. */
Test (retention, what_always_holds)
{
  static struct retention_backup b[MAX];

  srand (1);
  for (unsigned round = 0; round < 3000; round++) {
    size_t nr = 1 + (size_t)rand () % MAX;
    unsigned keep[RETENTION_RULES], sum = 0, protected = 0;
    int64_t t = NOON;
    for (size_t i = 0; i < nr; i++) {
      t += rand () % 5 ? rand () % (2 * DAY) : -(rand () % HOUR);
      b[i] = (struct retention_backup){ .time_s = t, .protected = rand () % 20 == 0 };
      protected += b[i].protected;
    }
    for (unsigned r = 0; r < RETENTION_RULES; r++)
      sum += keep[r] = rand () % 2 ? (unsigned)rand () % 20 : 0;
    apply (b, nr, keep);
    size_t kept = nr - count (b, nr, RETENTION_NONE);
    cr_assert_leq (kept, sum + protected + 1);
    if (sum > 0)
      cr_assert_neq (b[nr - 1].kept_by, RETENTION_NONE, "the newest is always kept");
    for (unsigned r = 0; r < RETENTION_RULES; r++)
      cr_assert_leq (count (b, nr, (enum retention_rule)r), keep[r]);
    for (size_t i = 0; i < nr; i++)
      cr_assert (!b[i].protected || b[i].kept_by != RETENTION_NONE);
    /* The last N backups are kept by the first rule, and by no other. */
    for (size_t i = 0; i < nr && i < keep[RETENTION_LAST]; i++)
      cr_assert_eq (b[nr - 1 - i].kept_by, RETENTION_LAST);
  }
}
