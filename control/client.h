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

/* Connect to PATH, read the greeting, and negotiate.  PATH may be the name of a disk that QEMU has
 * open by itself (name.h).  NULL with *ERROR set (the caller frees it with text_free()); the
 * message names PATH and the reason. */
struct control_client *control_client_connect (const char *path, int timeout_ms, char **error);
void control_client_free (struct control_client *c);

/* Is it certain that no process listens at NAME, which is as above? */
bool control_nobody_listens (const char *name);

/* Take lines of up to BYTES from now on.  Before that the limit is FRAME_MAX_LINE, and QEMU's
 * answers may be longer. */
void control_client_set_max_line (struct control_client *c, size_t bytes);

/* One command, and where its answer goes.  What is not named in an initialiser is not sent, or not
 * wanted. */
struct control_call {
  const char *command;
  json_t *args;       /* the call takes the reference over, whether it succeeds or not */
  const int *pass_fd; /* a descriptor to send along; the caller keeps it */
  int timeout_ms;     /* for sending and for the answer together */

  json_t **ret;  /* set to the answer, a new reference; NULL on failure */
  int *got_fd;   /* set to the descriptor that came with the answer, owned by the caller; or -1 */
  char **class_; /* set to the class of the server's error, which the caller frees with text_free().
                  * It is NULL on success, and where the server did not answer */
};

/* Run CALL and wait for its answer.  0; or -1 with *ERROR set (the caller frees it with
 * text_free()) to the server's description, or to what went wrong.  Events that arrive meanwhile
 * are queued for control_client_next_event(). */
int control_client_call (struct control_client *c, const struct control_call *call, char **error);

/* The two halves of control_client_call(), for who calls many servers at the same time: send CALL,
 * and wait for its answer.  Nothing else may be done with C in between.  If the first half fails
 * there is no second. */
int control_client_begin (struct control_client *c, const struct control_call *call, char **error);
int control_client_finish (struct control_client *c, const struct control_call *call, char **error);

/* Send a command without waiting for the answer.  When the answer arrives it is dropped, unless it
 * is an error: that is queued as an event "ERROR" with the data {"class","desc","execute"}.  Takes
 * over the reference ARGS (which may be NULL).  0, or -1 with *ERROR set (the caller frees it with
 * text_free()). */
int control_client_send (struct control_client *c, const char *name, json_t *args, char **error);

/* The socket, for poll(). */
int control_client_fd (const struct control_client *c);

/* Was the connection found lost by an earlier call?  Then each further one fails at once; after a
 * call that was only not answered in time, the next one may succeed. */
bool control_client_is_lost (const struct control_client *c);

/* Is an event queued already, so that the socket need not be readable for the next one? */
bool control_client_has_event (const struct control_client *c);

/* The next event.  Returns
 *
 *    1   with *NAME (the caller frees it with free()) and *DATA (a new reference to an object)
 *    0   if none came within TIMEOUT_MS, or if a signal ended the wait; with TIMEOUT_MS 0 it does
 * not wait -1   with *ERROR set (the caller frees it with text_free()) if the connection is lost */
int control_client_next_event (struct control_client *c, int timeout_ms, char **name, json_t **data,
                               char **error);

#endif
