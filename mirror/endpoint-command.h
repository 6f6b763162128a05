/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * `[ COMMAND ARGS ]`: an NBD server run for us, by systemd's socket activation (LISTEN_FDS): it is
 * given a listening unix socket and takes any number of connections from it, also when it is
 * single-shot otherwise.
 */

#ifndef NBDMIRROR_ENDPOINT_COMMAND_H
#define NBDMIRROR_ENDPOINT_COMMAND_H

struct command;

/* Run ARGV (NULL at its end; argv[0] is looked up in PATH).  NAME is for messages.  NULL with *ERRNUM and
 * *ERROR if it cannot be run at all. */
struct command *command_start (const char *name, char *const *argv, int *errnum, char **error);
/* The socket that it listens on. */
const char *command_socket (const struct command *cmd);
/* After a connection failed: how the command ended (caller frees), or NULL if it runs. */
char *command_ended (struct command *cmd);
/* Ask it to end, insist after a few seconds, reap it, remove the socket. */
void command_stop (struct command *cmd);

#endif
