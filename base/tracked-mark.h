/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The mark of a disk's file that is tracked with a state file (nbdmirror-state(5)).  A server with
 * a state file gives it; dirty-bitmap/state/ has the rest.  Whoever else writes to the file removes
 * the mark first: if the server was killed, nothing else would tell the next one that the disk has
 * changes which the state file lacks.
 */

#ifndef NBDMIRROR_BASE_TRACKED_MARK_H
#define NBDMIRROR_BASE_TRACKED_MARK_H

#define TRACKED_MARK_ATTRIBUTE "user.nbdmirror.tracked"

/* Remove the mark of FD's file, and make that durable.  0, also where there is none or can be none;
 * or -1 with errno.  Any thread. */
int tracked_mark_remove (int fd);

#endif
