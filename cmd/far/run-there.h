/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A whole subcommand that another host has asked for.  Without a terminal ssh ends nothing at this
 * end when the user interrupts it at the other one, but it closes standard input.
 */

#ifndef NBDMIRROR_CMD_FAR_RUN_THERE_H
#define NBDMIRROR_CMD_FAR_RUN_THERE_H

/* Run nbdmirror with the arguments WORDS, NULL at the end.  When standard input is closed it gets
 * SIGTERM.  Its exit status. */
int run_there (char *const *words);

#endif
