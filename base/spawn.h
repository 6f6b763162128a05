/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Starting a child in a process group of its own, so that a Ctrl-C at the terminal reaches us alone
 * and we end our children in order.
 */

#ifndef NBDMIRROR_BASE_SPAWN_H
#define NBDMIRROR_BASE_SPAWN_H

#include <stdbool.h>
#include <sys/types.h>

/* Standard input is /dev/null; standard output OUT_FD (-1: /dev/null).  ENV as for execve.  Returns
 * the process id, or -1 with errno. */
pid_t spawn_child (const char *path, char *const argv[], char *const env[], int out_fd);

/* Has it ended?  Within TIMEOUT_MS (0: just look).  *STATUS as from waitpid.  Call it until it says
 * so. */
bool spawn_ended (pid_t pid, int timeout_ms, int *status);

#endif
