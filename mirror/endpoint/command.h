/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * NBD servers run for us.
 *
 * `[ COMMAND ARGS ]` is run by systemd's socket activation (LISTEN_FDS): it is given a listening
 * unix socket and takes any number of connections from it, also when it is single-shot otherwise.
 * What ssh runs has one connection: its stdin and stdout.
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_COMMAND_H
#define NBDMIRROR_MIRROR_ENDPOINT_COMMAND_H

struct command;

/* Run ARGV (NULL at its end; argv[0] is looked up in PATH).  NAME is for messages.  NULL with
 * *ERRNUM and *ERROR if it cannot be run at all. */
struct command *command_start (const char *name, char *const *argv, int *errnum, char **error);
/* The same with one end of a connection as its stdin and stdout; the other end is *FD, the
 * caller's.  In a process group of its own: a Ctrl-C is for us. */
struct command *command_start_stdio (const char *name, char *const *argv, int *fd, int *errnum,
                                     char **error);
/* The socket that it listens on. */
const char *command_socket (const struct command *cmd);
/* After a connection failed: how the command ended (caller frees), or NULL if it runs. */
char *command_ended (struct command *cmd);
/* Then: its exit status, or -1. */
int command_exit_status (const struct command *cmd);
/* Ask it to end, insist after a few seconds, reap it, remove the socket. */
void command_stop (struct command *cmd);

#endif
