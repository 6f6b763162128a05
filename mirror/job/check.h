/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The checks before a live mirror begins.  Everything is looked at before anything is changed, so a
 * refused job leaves no trace.  A dry run makes the same checks.
 *
 *   ask the filter         how to reach the export, and which nbdkit it runs in
 *   open the source        with a connection to the export first: the filter learns the disk's size
 *                          from it
 *   lock                   no worker of an earlier server lives (worker-lock.h)
 *   open the destination   and ask whether it may be written to
 *
 * Only the last step can change something: the job creates or extends a destination that is a local
 * file.  A dry run does not.
 */

#ifndef NBDMIRROR_MIRROR_JOB_CHECK_H
#define NBDMIRROR_MIRROR_JOB_CHECK_H

#include <jansson.h>

struct job;

/* What is said of a job that is left over, where neither --resume nor --restart was given.  Takes
 * the control socket's path. */
#define JOB_LEFT_OVER "%s: a job is left over here: --resume goes on with it, --restart starts over"

/* What is said where --resume was given alone and no job is left over. */
#define JOB_NOTHING_LEFT                                                                           \
  "%s: nothing to resume: no job is left over here (with --restart as well it would begin anew)"

/* Make the checks.  Sets J's control, source, lock, and dest.opened.  0, or -1 with J's result set
 * and the message said.  *STATUS: what the filter says of the disk, a new reference or NULL, in
 * either case.  The job's thread. */
int job_check (struct job *j, json_t **status);

#endif
