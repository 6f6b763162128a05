/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A client's connection to the control server; see link.h.
 *
 * While something is being sent, what the server sends is read as well.  So the two sides never
 * wait for each other.
 */

#include "config.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "control/link.h"
#include "control/wire.h"

#define MAX_EVENTS 1024u /* beyond it the oldest are dropped */
#define READS_PER_PUMP 256

int64_t
link_deadline (int timeout_ms)
{
  return timeout_ms < 0 ? INT64_MAX : clock_ms () + timeout_ms;
}

int
link_ms_until (int64_t deadline)
{
  if (deadline == INT64_MAX)
    return -1;
  int64_t left = deadline - clock_ms ();
  return left <= 0 ? 0 : left > INT_MAX ? INT_MAX : (int)left;
}

/* The connection is lost.  The first reason is the one to report. */
static void
lose (struct control_client *c, const char *reason)
{
  if (!c->lost) {
    char *copy = text_copy (reason); /* first, because REASON may be c->reason */
    text_free (c->reason);
    c->reason = copy;
  }
  c->lost = true;
}

char *
link_lost_message (const struct control_client *c)
{
  return text_printf ("%s: %s", c->path, c->reason ? c->reason : "connection lost");
}

static void
queue_event (struct control_client *c, const char *name, json_t *data)
{
  struct event *e = malloc (sizeof *e);
  char *copy = strdup (name);

  if (e == NULL || copy == NULL || data == NULL) {
    free (e);
    free (copy);
    json_decref (data);
    lose (c, "out of memory");
    return;
  }
  if (c->nr_events == MAX_EVENTS) {
    struct event *oldest = c->events;

    c->events = oldest->next;
    free (oldest->name);
    json_decref (oldest->data);
    free (oldest);
    c->nr_events--;
  }
  *e = (struct event){ .name = copy, .data = data };
  *c->events_end = e;
  c->events_end = &e->next;
  c->nr_events++;
}

static bool
is_awaited (const struct control_client *c, const json_t *message)
{
  const json_t *id = json_object_get (message, "id");

  if (!c->waiting || c->answer != NULL)
    return false;
  if (json_object_get (message, "QMP") != NULL)
    return c->last_id == 0;
  if (id == NULL) /* the server could not tell which command it was: ours */
    return json_object_get (message, "error") != NULL;
  return json_is_integer (id) && json_integer_value (id) == c->last_id;
}

/* MESSAGE is not the awaited answer.  If it is an error it tells of a command that nobody waits
 * for, or why the server is about to close. */
static void
late_error (struct control_client *c, const json_t *message)
{
  const json_t *error = json_object_get (message, "error");
  const char *id = json_string_value (json_object_get (message, "id"));
  const char *class_ = json_string_value (json_object_get (error, "class"));
  const char *desc = json_string_value (json_object_get (error, "desc"));
  size_t n = strlen (SEND_PREFIX);

  if (error == NULL)
    return;
  if (id != NULL && strncmp (id, SEND_PREFIX, n) == 0)
    queue_event (c, "ERROR",
                 json_pack ("{s:s, s:s, s:s}", "class", class_ ? class_ : "GenericError", "desc",
                            desc ? desc : "unknown error", "execute", id + n));
  else if (json_object_get (message, "id") == NULL && desc != NULL && !c->lost) {
    /* Not an answer: probably the server says why it will now close. */
    text_free (c->reason);
    c->reason = text_copy (desc);
  }
}

static void
take_message (struct control_client *c, json_t *message)
{
  const char *event = json_string_value (json_object_get (message, "event"));

  if (event != NULL) {
    json_t *data = json_object_get (message, "data");

    queue_event (c, event, json_is_object (data) ? json_incref (data) : json_object ());
  } else if (is_awaited (c, message)) {
    c->answer = json_incref (message);
    c->answer_fd = c->pending_fd;
    c->answer_fd_lost = c->fd_lost;
    c->pending_fd = -1;
  } else
    late_error (c, message);
}

static void
take_line (struct control_client *c)
{
  json_t *message;
  char *error;

  switch (frame_next (&c->in, &message, &error)) {
  case FRAME_NONE:
    return;
  case FRAME_OBJECT:
    take_message (c, message);
    json_decref (message);
    break;
  case FRAME_BAD:
    lose (c, "the server does not speak the control protocol");
    text_free (error);
    break;
  case FRAME_TOO_LONG:
    lose (c, "the server sent a line that is too long");
    break;
  case FRAME_NOMEM:
    lose (c, "out of memory");
    break;
  }
  fd_close (&c->pending_fd);
  c->fd_lost = false;
}

void
link_pump (struct control_client *c)
{
  char buf[4096];

  for (int i = 0; i < READS_PER_PUMP && !c->lost && c->answer == NULL; i++) {
    ssize_t n = wire_recv (c->sock, buf, sizeof buf, &c->pending_fd, &c->fd_lost);

    if (n == -1 && (errno == EAGAIN || errno == EWOULDBLOCK))
      return;
    if (n == -1)
      lose (c, errno == ECONNRESET ? "the server closed the connection" : strerror (errno));
    else if (n == 0)
      lose (c, c->reason != NULL ? c->reason : "the server closed the connection");
    else if (c->last_id == 0 && n >= 8 && memcmp (buf, "NBDMAGIC", 8) == 0)
      lose (c, "this is an NBD socket, not a control socket"); /* an easy one to mix up */
    else if (frame_append (&c->in, buf, (size_t)n) == -1)
      lose (c, "out of memory");
    else
      take_line (c);
  }
}

int
link_wait (const struct control_client *c, short events, int64_t deadline)
{
  struct pollfd p = { .fd = c->sock, .events = events };

  return poll (&p, 1, link_ms_until (deadline));
}

int
link_send (struct control_client *c, const char *name, json_t *args, json_t *id, int pass_fd,
           int64_t deadline, char **error)
{
  json_t *m = json_pack ("{s:s, s:o*, s:o}", "execute", name, "arguments", args, "id", id);
  size_t len, sent = 0;
  char *line = m != NULL ? frame_encode (m, &len) : NULL;

  json_decref (m);
  if (line == NULL) {
    return text_error (error, "%s: %s: out of memory", c->path, name);
  }
  if (len - 1 > FRAME_MAX_LINE) {
    text_error (error, "%s: %s: the command is too long: %zu bytes, at most %u are possible",
                c->path, name, len - 1, FRAME_MAX_LINE);
    free (line);
    return -1;
  }
  while (sent < len && !c->lost) {
    ssize_t n = wire_send (c->sock, line + sent, len - sent, sent == 0 ? pass_fd : -1);

    if (n > 0) {
      sent += (size_t)n;
      continue;
    }
    if (errno != EAGAIN && errno != EWOULDBLOCK) {
      int err = errno;

      link_pump (c); /* the server may have said why it closed */
      lose (c, err == EPIPE || err == ECONNRESET ? "the server closed the connection"
                                                 : strerror (err));
    } else if (link_wait (c, c->answer == NULL ? POLLIN | POLLOUT : POLLOUT, deadline) == 0) {
      text_error (error, "%s: %s: the server does not read (is it stopped?)", c->path, name);
      if (sent > 0)
        lose (c, "a command was sent only in part"); /* nothing can follow half a line */
      free (line);
      return -1;
    } else
      link_pump (c);
  }
  free (line);
  if (c->lost) {
    *error = link_lost_message (c);
    return -1;
  }
  return 0;
}
