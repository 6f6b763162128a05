/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * NBD servers that are run for us, as child processes.
 *
 * `[ COMMAND ARGS ]` is run by systemd's socket activation (LISTEN_FDS): it gets a listening Unix
 * socket and takes any number of connections from there, even if it serves only one client
 * otherwise.  What ssh runs has one connection: its stdin and stdout.
 *
 * All functions may be called from any thread, but command_stop() only when nobody uses CMD any
 * more.
 */

#ifndef NBDMIRROR_MIRROR_ENDPOINT_COMMAND_H
#define NBDMIRROR_MIRROR_ENDPOINT_COMMAND_H

struct command;

/* Run ARGV (NULL at its end; argv[0] is looked up in PATH).  NAME is for messages.  The caller ends
 * it with command_stop().  NULL with *ERRNUM and *ERROR (text_free()) if it cannot be run at all.
 */
struct command *command_start (const char *name, char *const *argv, int *errnum, char **error);
/* The same with one end of a connection as its stdin and stdout; the other end is *FD, which the
 * caller closes.  It gets a process group of its own, so that a Ctrl-C reaches only us. */
struct command *command_start_stdio (const char *name, char *const *argv, int *fd, int *errnum,
                                     char **error);
/* The path of the socket that it listens on; "" after command_start_stdio(). */
const char *command_socket (const struct command *cmd);
/* After a connection failed: how the command ended (text_free()), or NULL if it runs.  Waits for
 * its end for 0.3 s, or 2 s where it has one connection only. */
char *command_ended (struct command *cmd);
/* Its exit status, once command_ended() has said that it has ended; -1 if a signal ended it. */
int command_exit_status (const struct command *cmd);
/* Ask it to end, kill it after 5 seconds, reap it, remove the socket, and free CMD. */
void command_stop (struct command *cmd);

#endif
