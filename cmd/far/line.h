/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The line between a program and its agent on another host: JSON objects, one in each line of text,
 * through what ssh connects.
 *
 * A dead connection may stay unnoticed for hours, and the agent holds locks.  So a thread at each
 * end sends an empty line now and then, and an end that hears nothing for a minute takes the line
 * for dead.
 *
 * One thread at a time sends and receives.
 */

#ifndef NBDMIRROR_CMD_FAR_LINE_H
#define NBDMIRROR_CMD_FAR_LINE_H

#include <jansson.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

struct far_line {
  int in, out;          /* not owned; out is made non-blocking */
  pthread_mutex_t lock; /* over sending */
  pthread_t thread;
  int stop_fd; /* wakes the thread for its end */
  char *text;  /* what was received, and not returned yet */
  size_t have, room;
};

/* Begin, and end; the descriptors stay open.  0, or -1 with errno. */
int far_line_begin (struct far_line *l, int in, int out);
void far_line_end (struct far_line *l);

/* Send O.  0, or -1 with *ERROR (base/text.h). */
int far_line_send (struct far_line *l, const json_t *o, char **error);

/* The next object, a new reference.  GO_ON (NULL allowed) is called with OPAQUE a few times a
 * second; false ends it.  NULL with *ERROR; with *ERROR NULL where the other end has closed the
 * line in order. */
json_t *far_line_receive (struct far_line *l, bool (*go_on) (void *), void *opaque, char **error);

/* Has the other end closed the line?  It does not wait. */
bool far_line_is_closed (const struct far_line *l);

#endif
