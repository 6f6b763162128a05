/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * See retention.h.
 */

#include "config.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "backup/retention.h"

#define PERIOD_TEXT 64

const char *
retention_name (enum retention_rule rule)
{
  static const char *const names[]
      = { [RETENTION_LAST] = "last",           [RETENTION_HOURLY] = "hourly",
          [RETENTION_DAILY] = "daily",         [RETENTION_WEEKLY] = "weekly",
          [RETENTION_MONTHLY] = "monthly",     [RETENTION_YEARLY] = "yearly",
          [RETENTION_PROTECTED] = "protected", [RETENTION_NONE] = "" };

  return names[rule];
}

/* The period of RULE in which TM is.  0: it has no name. */
static size_t
format_period (enum retention_rule rule, const struct tm *tm, char text[PERIOD_TEXT])
{
  switch (rule) {
  case RETENTION_HOURLY: /* two hours have one name when the clock is set back */
    return strftime (text, PERIOD_TEXT, "%Y-%m-%d %H %z", tm);
  case RETENTION_DAILY:
    return strftime (text, PERIOD_TEXT, "%Y-%m-%d", tm);
  case RETENTION_WEEKLY:
    return strftime (text, PERIOD_TEXT, "%G-%V", tm);
  case RETENTION_MONTHLY:
    return strftime (text, PERIOD_TEXT, "%Y-%m", tm);
  case RETENTION_YEARLY:
    return strftime (text, PERIOD_TEXT, "%Y", tm);
  case RETENTION_LAST:
  case RETENTION_PROTECTED:
  case RETENTION_NONE:
    break;
  }
  return 0;
}

/* A backup that has no period is one of its own: so is each of the last ones. */
static void
name_period (enum retention_rule rule, int64_t time_s, size_t i, char text[PERIOD_TEXT])
{
  time_t t = (time_t)time_s;
  struct tm tm;

  if (localtime_r (&t, &tm) == NULL || format_period (rule, &tm, text) == 0)
    snprintf (text, PERIOD_TEXT, "#%zu", i);
}

static void
apply_rule (struct retention_backup *backups, size_t nr, enum retention_rule rule, unsigned keep)
{
  char last[PERIOD_TEXT] = "", period[PERIOD_TEXT];
  unsigned kept = 0;

  for (size_t i = nr; i-- > 0 && kept < keep;) {
    name_period (rule, backups[i].time_s, i, period);
    if (strcmp (period, last) == 0)
      continue;
    strcpy (last, period);
    if (backups[i].kept_by != RETENTION_NONE)
      continue;
    backups[i].kept_by = rule;
    kept++;
  }
  if (kept < keep && nr > 0 && backups[0].kept_by == RETENTION_NONE)
    backups[0].kept_by = rule;
}

void
retention_apply (struct retention_backup *backups, size_t nr, const unsigned keep[RETENTION_RULES])
{
  for (size_t i = 0; i < nr; i++)
    backups[i].kept_by = RETENTION_NONE;
  for (unsigned rule = 0; rule < RETENTION_RULES; rule++)
    apply_rule (backups, nr, (enum retention_rule)rule, keep[rule]);
  for (size_t i = 0; i < nr; i++)
    if (backups[i].protected && backups[i].kept_by == RETENTION_NONE)
      backups[i].kept_by = RETENTION_PROTECTED;
}
