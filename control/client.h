/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The client side of the control protocol, for the worker and the command line.  A client belongs
 * to one thread.  All waits are bounded; times are in milliseconds.
 */

#ifndef NBDMIRROR_CONTROL_CLIENT_H
#define NBDMIRROR_CONTROL_CLIENT_H

#include <stdbool.h>
#include <jansson.h>

struct control_client;

/* Connect to PATH, read the greeting, negotiate.  NULL with *ERROR set (caller frees): the message
 * names PATH and the reason. */
struct control_client *control_client_connect (const char *path, int timeout_ms, char **error);
void control_client_free (struct control_client *c);

/* Take lines of up to BYTES from now on (FRAME_MAX_LINE before): QEMU's answers may be long. */
void control_client_set_max_line (struct control_client *c, size_t bytes);

/* Run a command and wait for its answer.  Steals ARGS (may be NULL).  PASS_FD >= 0 is sent along
 * (kept by the caller). Success: 0, *RET (if RET is not NULL) is a new reference, *GOT_FD (if not
 * NULL) a received descriptor or -1. Failure: -1, *ERROR set (caller frees) to the server's
 * description, or to what went wrong; *CLASS_ (if not NULL) to the error's class (caller frees),
 * NULL if the server did not answer. Events that arrive meanwhile are queued for
 * control_client_next_event(). */
int control_client_call (struct control_client *c, const char *name, json_t *args, int pass_fd,
                         int timeout_ms, json_t **ret, int *got_fd, char **class_, char **error);

/* Send a command without waiting for the answer, which is dropped when it arrives unless it is an
 * error (then it is queued as an event "ERROR" with data {"class","desc","execute"}).  Steals ARGS.
 * 0 or -1 with *ERROR. */
int control_client_send (struct control_client *c, const char *name, json_t *args, char **error);

/* For poll(): the socket. */
int control_client_fd (const struct control_client *c);

/* The next event: 1 with *NAME (caller frees) and *DATA (new reference, an object); 0 when none
 * came within TIMEOUT_MS (0: only what is there already); -1 with *ERROR when the connection is
 * lost. */
int control_client_next_event (struct control_client *c, int timeout_ms, char **name, json_t **data,
                               char **error);

#endif
