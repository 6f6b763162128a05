/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Running nbdkit, and waiting for it.
 */

#ifndef NBDMIRROR_CMD_SERVE_NBDKIT_RUN_H
#define NBDMIRROR_CMD_SERVE_NBDKIT_RUN_H

struct nbdkit_run {
  char **words;       /* the command line, NULL at the end */
  const char *socket; /* absolute paths: what to wait for, and what to remove in the end */
  const char *control;
  const char *pidfile; /* or NULL; must be set to run detached */
};

/* Is there an nbdkit?  Warns if it is one that a dying client can end.  -1 after an error message.
 */
int nbdkit_check (void);

/* Turn into nbdkit.  Does not return. */
int nbdkit_become (const struct nbdkit_run *r) __attribute__ ((noreturn));

/* Run it in the background.  Returns an exit status when it serves, or has failed. */
int nbdkit_run_detached (const struct nbdkit_run *r);

#endif
