/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * How the nodes and jobs are called that we make in a guest's QEMU.  The names are made from the
 * path of the control socket: so a second run finds what a first one left behind, and nothing that
 * is somebody else's.
 */

#ifndef NBDMIRROR_CMD_ADOPT_NAMES_H
#define NBDMIRROR_CMD_ADOPT_NAMES_H

#include <stdbool.h>

#define ADOPT_NAME_BYTES 32 /* QEMU's limit for the name of a node, with the NUL */

struct adopt_names {
  char node[ADOPT_NAME_BYTES];   /* the node with the connection to our server */
  char job[ADOPT_NAME_BYTES];    /* the job that puts the guest from one node to another */
  char filter[ADOPT_NAME_BYTES]; /* the node that this job puts in between meanwhile */
  char image[ADOPT_NAME_BYTES];  /* a node on the image, where nobody has given it a name */
  char file[ADOPT_NAME_BYTES];   /* the same for the file below it */
};

/* CONTROL is an absolute path. */
void adopt_names_make (struct adopt_names *n, const char *control);

/* Is VALUE, of OPTION, one of WORDS, which are separated by bars?  NULL is fine: the option was not
 * given.  False after a usage error. */
bool adopt_word_ok (const char *option, const char *value, const char *words);

#endif
