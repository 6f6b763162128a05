/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Writing into the files of a chain, by qemu-img.  What each call does to a chain, and why it harms
 * none of the backups that are kept, stands in backup/drop-plan.h.  All names are absolute paths;
 * the files of one disk lie in one folder, and name each other without it.  EXIT_DONE after the
 * file is durable, or an exit status after a message.
 */

#ifndef NBDMIRROR_CMD_REPOSITORY_REWRITE_H
#define NBDMIRROR_CMD_REPOSITORY_REWRITE_H

/* Write into TOP what it would lack, and put it on BASE when all of that is durable. */
int rewrite_rebase (const char *top, const char *base);
/* Write into BASE, which is somewhere below TOP, what TOP adds to it. */
int rewrite_commit (const char *top, const char *base);
/* Put TOP on BASE, which holds what the file holds on which it lay. */
int rewrite_relink (const char *top, const char *base);

#endif
