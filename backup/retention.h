/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Which backups `backup-prune` keeps.  The rules are those of borg: "keep N of a period" keeps the
 * newest backup of each of the last N periods (hours, days, ISO weeks, months, years of local time)
 * that have one.  A backup that an earlier rule keeps is not counted again by a later one, so the
 * rules add up: `--keep-last 1 --keep-daily 7` keeps up to eight.  If a rule does not find as many
 * as it may keep, it keeps the oldest backup as well, which may become the monthly one, say.
 *
 * Pure, but for the time zone: no I/O, any thread.
 */

#ifndef NBDMIRROR_BACKUP_RETENTION_H
#define NBDMIRROR_BACKUP_RETENTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum retention_rule {
  RETENTION_LAST,
  RETENTION_HOURLY,
  RETENTION_DAILY,
  RETENTION_WEEKLY,
  RETENTION_MONTHLY,
  RETENTION_YEARLY,
  RETENTION_PROTECTED, /* whatever the rules say */
  RETENTION_NONE       /* no rule keeps it */
};
#define RETENTION_RULES RETENTION_PROTECTED

struct retention_backup {
  int64_t time_s; /* when it ended, seconds since 1970 */
  bool protected;
  enum retention_rule kept_by; /* set by retention_apply() */
};

/* Decide on NR backups of one disk, the oldest first: in the order in which they were made, which a
 * clock that was set back does not change.  KEEP[rule] is how many each rule keeps; 0: it is not
 * asked for. */
void retention_apply (struct retention_backup *backups, size_t nr,
                      const unsigned keep[RETENTION_RULES]);

/* "last", "hourly" …, "protected", or "" */
const char *retention_name (enum retention_rule rule);

#endif
