/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A repository of backups on another host: ssh://[USER@]HOST[:PORT]/DIR[?program=FILE].  Whatever
 * is done in its directory is done there, by `nbdmirror backup-agent`, which ssh starts.
 *
 *   line.h    JSON objects through a line that may die
 *   far.c     this end: it asks the agent (cmd/backup/store.c says what)
 *   agent.c   the other end: it does what it is asked for
 *   pass-on.c a whole subcommand that is run there
 *
 * One thread uses a struct far.
 */

#ifndef NBDMIRROR_CMD_FAR_FAR_H
#define NBDMIRROR_CMD_FAR_FAR_H

#include <jansson.h>
#include <stdbool.h>

#include "cmd/cmd.h"

#define FAR_VERSION 1

struct far;

/* Is PLACE on another host? */
bool far_is_meant (const char *place);

/* EXIT_DONE if PLACE is a local path, or a URI that can be meant; else EXIT_USAGE after a message.
 */
int far_check (const char *place);

/* Start the agent for PLACE.  GO_ON and OPAQUE as for far_line_receive().  NULL with *ERROR
 * (base/text.h). */
struct far *far_open (const char *place, bool (*go_on) (void *), void *opaque, char **error);
void far_close (struct far *f); /* NULL is allowed */

/* Have the agent do WHAT with ARGS, whose reference is consumed.  0 with *RET (a new reference;
 * NULL: not wanted), or -1 with *ERROR and *STATUS (NULL: not wanted), an exit status.  Once the
 * line is lost every call fails. */
int far_call (struct far *f, const char *what, json_t *args, json_t **ret, int *status,
              char **error);

/* The URI under which the file FILE of the repository is an endpoint.  FLAGS is appended to the
 * query ("&…"), or "".  For text_free(). */
char *far_endpoint (const char *place, const char *file, const char *flags);

/* The command that serves FILE read-only on its stdin and stdout, NULL at the end; for
 * ssh_command_free(). */
char **far_serve_command (const char *place, const char *file);

/* Run the subcommand of LINE on the other host, where its first operand names a repository there.
 * False: it does not.  Else *STATUS is the exit status. */
bool far_pass_on (const struct cmd_line *line, int *status);

#endif
