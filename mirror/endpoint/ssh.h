/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * ssh://[USER@]HOST[:PORT]/PATH[?OPTION&…]: a disk on another host, which `nbdmirror receive
 * --stdio` there prepares and serves through one ssh connection.
 *
 *   format=raw|qcow2  backing=FILE  backing-format=F  preallocate  overcommit  overwrite
 *                     as the options of receive; they count when the disk is made
 *   resume            the disk is there, whatever else is said, and is not made
 *   program=FILE      nbdmirror on that host (default: nbdmirror, in PATH)
 *
 * The environment variable NBDMIRROR_SSH is the command to use, with options, separated by spaces
 * (default: ssh).  It is never asked for a password (BatchMode).
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_SSH_H
#define NBDMIRROR_MIRROR_ENDPOINT_SSH_H

#include "mirror/endpoint/endpoint.h"
#include "mirror/endpoint/uri.h"

/* The command for URI, which is of the kind URI_SSH, with NULL at the end.  The caller frees it
 * with ssh_command_free().  With OPTS->create the disk is made; else the mirror goes on with the
 * one that is there, or without OPTS->writable only reads it.  Pure but for the environment. */
char **ssh_command (const struct uri *uri, const struct endpoint_options *opts);
/* The command that runs nbdmirror there with the arguments WORDS, NULL at the end; the same. */
char **ssh_command_for (const struct uri *uri, const char *const *words);
void ssh_command_free (char **argv); /* NULL is allowed */

/* Why a command that ended with STATUS did so; NULL where its exit status does not tell.  Sets *ERR
 * if an errno fits better than that of the broken connection.  What ssh itself or the other host's
 * nbdmirror had to say was shown already.  Pure. */
const char *ssh_why_ended (int status, int *err);

#endif
