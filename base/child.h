/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Running other programs as children.
 */

#ifndef NBDMIRROR_BASE_CHILD_H
#define NBDMIRROR_BASE_CHILD_H

#include <stdbool.h>
#include <sys/types.h>

/* Run WORDS (NULL at the end; looked up in PATH) and wait.  Its exit status, 128 and the signal if
 * one ended it, or -1 if it could not be run.  If OUT is not NULL it is set to what it printed
 * (caller frees; at most 1 MiB), or NULL; else its output goes to our stderr. */
int run_and_wait (const char *const *words, char **out);

#define RUN_KEEP 4

struct run_options {
  bool our_stdio;     /* its stdin and stdout are ours; else /dev/null */
  int keep[RUN_KEEP]; /* descriptors to pass on, by their numbers; -1: none */
  bool end_with_us;   /* SIGKILL it when this process ends */
};

/* Start WORDS, with all signals as they are by default.  Its process id, or -1 with errno, also
 * where it cannot be executed. */
pid_t run_start (char *const *words, const struct run_options *o);

#endif
