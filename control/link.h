/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A client's connection.  What is received is sorted into events and the awaited answer.  What is
 * sent is sent whole, or the connection is lost.  Internal to this folder; client.c makes calls out
 * of it.
 */

#ifndef NBDMIRROR_CONTROL_LINK_H
#define NBDMIRROR_CONTROL_LINK_H

#include <stdbool.h>
#include <stdint.h>
#include <jansson.h>

#include "control/frame.h"

/* The id of a command that nobody waits for is this and the command's name. */
#define SEND_PREFIX "send:"

struct event {
  struct event *next;
  char *name;
  json_t *data;
};

struct control_client {
  int sock;
  char *path;
  struct frame_buffer in;
  int pending_fd; /* came with the line being received; -1 none */
  bool fd_lost;
  bool lost;    /* the connection is of no use any more */
  char *reason; /* why, or what the server said last; NULL: nothing is known */

  struct event *events, **events_end;
  unsigned nr_events;

  json_int_t last_id;
  bool waiting;     /* for the answer to last_id, or for the greeting (id 0), */
  int64_t deadline; /* until then, in the time of clock_ms() */
  json_t *answer;   /* it came */
  int answer_fd;
  bool answer_fd_lost; /* one was sent but could not be taken in */
};

/* The deadline TIMEOUT_MS from now, in the time of clock_ms(), and how long it is until then.  A
 * negative TIMEOUT_MS means no limit. */
int64_t link_deadline (int timeout_ms);
int link_ms_until (int64_t deadline);

/* What to tell the user about a lost connection (the caller frees it with text_free()). */
char *link_lost_message (const struct control_client *c);

/* Take in what is there, without waiting, up to the awaited answer. */
void link_pump (struct control_client *c);

/* Wait for poll() EVENTS.  1, 0 after the deadline, -1 with errno. */
int link_wait (const struct control_client *c, short events, int64_t deadline);

/* Send one command; steals ARGS (may be NULL) and ID.  0, or -1 with *ERROR set. */
int link_send (struct control_client *c, const char *name, json_t *args, json_t *id, int pass_fd,
               int64_t deadline, char **error);

#endif
