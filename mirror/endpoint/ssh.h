/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * ssh://[USER@]HOST[:PORT]/PATH[?OPTION&…]: a disk on another host, which `nbdmirror receive
 * --stdio` there prepares and serves through one ssh connection.
 *
 *   format=raw|qcow2  backing=FILE  backing-format=F  preallocate  overcommit  overwrite
 *                     as the options of receive; they count when the disk is made
 *   program=FILE      nbdmirror on that host (default: nbdmirror, in PATH)
 *
 * The environment variable NBDMIRROR_SSH is the command to use, with options, separated by spaces
 * (default: ssh).  It is never asked for a password (BatchMode).
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_SSH_H
#define NBDMIRROR_MIRROR_ENDPOINT_SSH_H

#include "mirror/endpoint/endpoint.h"

/* The command for it, NULL at the end; free it with ssh_command_free().  With OPTS->create the disk
 * is made, else gone on with; without OPTS->writable it is only read.  NULL with *ERROR
 * (text_free()). Pure but for the environment. */
char **ssh_command (const char *uri, const struct endpoint_options *opts, char **error);
void ssh_command_free (char **argv);

#endif
