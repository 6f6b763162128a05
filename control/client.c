/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The client side of the control protocol.
 *
 * Ids: a call's id is a number, so that the answer to a call that timed out is recognised and dropped; a command
 * that nobody waits for has the string "send:NAME" as its id, which comes back with an error and says
 * what failed, with nothing to remember here.
 *
 * While something is being sent, what the server sends is read as well, so that the two never wait for
 * each other.
 */

#include "config.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "control/client.h"
#include "control/frame.h"
#include "control/wire.h"

#define SEND_MS 5000      /* control_client_send: for the server to take the line */
#define MAX_EVENTS 1024u  /* beyond it the oldest are dropped */
#define READS_PER_PUMP 256
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
  bool lost;      /* the connection is of no use any more, because of */
  char *reason;

  struct event *events, **events_end;
  unsigned nr_events;

  json_int_t last_id;
  bool waiting;   /* for the answer to last_id, or for the greeting (id 0) */
  json_t *answer; /* it came */
  int answer_fd;
  bool answer_fd_lost; /* one was sent but could not be taken in */
};

/* ---- small things ---- */

static int64_t
deadline_after (int timeout_ms)
{
  return timeout_ms < 0 ? INT64_MAX : wire_now_ms () + timeout_ms;
}

static int
ms_until (int64_t deadline)
{
  int64_t left;

  if (deadline == INT64_MAX)
    return -1;
  left = deadline - wire_now_ms ();
  return left <= 0 ? 0 : left > INT_MAX ? INT_MAX : (int) left;
}

/* The connection is lost; the first reason is the one to report. */
static void
lose (struct control_client *c, const char *reason)
{
  if (!c->lost) {
    free (c->reason);
    c->reason = strdup (reason);
  }
  c->lost = true;
}

static char *
lost_message (const struct control_client *c)
{
  return wire_message ("%s: %s", c->path, c->reason ? c->reason : "connection lost");
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

/* ---- receiving ---- */

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

/* The server dislikes a command that nobody waits for. */
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
    free (c->reason);
    c->reason = strdup (desc);
  }
}

static void
take_message (struct control_client *c, json_t *message)
{
  const char *event = json_string_value (json_object_get (message, "event"));

  if (event != NULL) {
    json_t *data = json_object_get (message, "data");

    queue_event (c, event, json_is_object (data) ? json_incref (data) : json_object ());
  }
  else if (is_awaited (c, message)) {
    c->answer = json_incref (message);
    c->answer_fd = c->pending_fd;
    c->answer_fd_lost = c->fd_lost;
    c->pending_fd = -1;
  }
  else
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
    free (error);
    break;
  case FRAME_TOO_LONG:
    lose (c, "the server sent a line that is too long");
    break;
  case FRAME_NOMEM:
    lose (c, "out of memory");
    break;
  }
  if (c->pending_fd != -1)
    close (c->pending_fd);
  c->pending_fd = -1;
  c->fd_lost = false;
}

/* Take in what is there, without waiting, up to the awaited answer. */
static void
pump (struct control_client *c)
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
    else if (frame_append (&c->in, buf, (size_t) n) == -1)
      lose (c, "out of memory");
    else
      take_line (c);
  }
}

/* Wait for EVENTS.  1, 0 after the deadline, -1 with errno. */
static int
wait_for (struct control_client *c, short events, int64_t deadline)
{
  struct pollfd p = { .fd = c->sock, .events = events };

  return poll (&p, 1, ms_until (deadline));
}

/* ---- sending ---- */

/* Send one command.  0, or -1 with *ERROR set. */
static int
send_command (struct control_client *c, const char *name, json_t *args, json_t *id, int pass_fd,
              int64_t deadline, char **error)
{
  json_t *m = json_pack ("{s:s, s:o*, s:o}", "execute", name, "arguments", args, "id", id);
  size_t len, sent = 0;
  char *line = m != NULL ? frame_encode (m, &len) : NULL;

  json_decref (m);
  if (line == NULL) {
    *error = wire_message ("%s: %s: out of memory", c->path, name);
    return -1;
  }
  if (len - 1 > FRAME_MAX_LINE) {
    *error = wire_message ("%s: %s: the command is too long: %zu bytes, at most %u are possible",
                           c->path, name, len - 1, FRAME_MAX_LINE);
    free (line);
    return -1;
  }
  while (sent < len && !c->lost) {
    ssize_t n = wire_send (c->sock, line + sent, len - sent, sent == 0 ? pass_fd : -1);

    if (n > 0) {
      sent += (size_t) n;
      continue;
    }
    if (errno != EAGAIN && errno != EWOULDBLOCK) {
      int err = errno;

      pump (c); /* the server may have said why it closed */
      lose (c, err == EPIPE || err == ECONNRESET ? "the server closed the connection"
                                                 : strerror (err));
    }
    else if (wait_for (c, c->answer == NULL ? POLLIN | POLLOUT : POLLOUT, deadline) == 0) {
      *error = wire_message ("%s: %s: the server does not read (is it stopped?)", c->path, name);
      if (sent > 0)
        lose (c, "a command was sent only in part"); /* nothing can follow half a line */
      free (line);
      return -1;
    }
    else
      pump (c);
  }
  free (line);
  if (c->lost) {
    *error = lost_message (c);
    return -1;
  }
  return 0;
}

/* Wait for the answer to what was sent.  0 with c->answer set, or -1 with *ERROR set. */
static int
wait_for_answer (struct control_client *c, const char *what, int64_t deadline, char **error)
{
  for (;;) {
    pump (c);
    if (c->answer != NULL)
      break;
    if (c->lost) {
      *error = lost_message (c);
      break;
    }
    if (wait_for (c, POLLIN, deadline) == 0) {
      pump (c);
      if (c->answer == NULL)
        *error = wire_message ("%s: no answer to %s in time (is the server stopped?)", c->path,
                               what);
      break;
    }
  }
  c->waiting = false;
  return c->answer != NULL ? 0 : -1;
}

/* Take c->answer apart. */
static int
use_answer (struct control_client *c, json_t **ret, int *got_fd, char **class_, char **error)
{
  json_t *answer = c->answer, *value;
  int fd = c->answer_fd, r = -1;

  c->answer = NULL;
  c->answer_fd = -1;
  if ((value = json_object_get (answer, "return")) != NULL && c->answer_fd_lost
      && got_fd != NULL)
    *error = wire_message ("%s: the descriptor in the answer could not be received "
                           "(too many open files?)", c->path);
  else if (value != NULL) {
    if (ret != NULL)
      *ret = json_incref (value);
    if (got_fd != NULL) {
      *got_fd = fd;
      fd = -1;
    }
    r = 0;
  }
  else if ((value = json_object_get (answer, "error")) != NULL) {
    const char *name = json_string_value (json_object_get (value, "class"));
    const char *desc = json_string_value (json_object_get (value, "desc"));

    *error = strdup (desc != NULL ? desc : "unknown error");
    if (class_ != NULL)
      *class_ = strdup (name != NULL ? name : "GenericError");
  }
  else
    *error = wire_message ("%s: the server does not speak the control protocol", c->path);
  if (fd != -1)
    close (fd);
  json_decref (answer);
  return r;
}

int
control_client_call (struct control_client *c, const char *name, json_t *args, int pass_fd,
                     int timeout_ms, json_t **ret, int *got_fd, char **class_, char **error)
{
  int64_t deadline = deadline_after (timeout_ms);

  *error = NULL;
  if (ret != NULL)
    *ret = NULL;
  if (got_fd != NULL)
    *got_fd = -1;
  if (class_ != NULL)
    *class_ = NULL;
  if (c->lost) {
    json_decref (args);
    *error = lost_message (c);
    return -1;
  }
  c->waiting = true;
  if (send_command (c, name, args, json_integer (++c->last_id), pass_fd, deadline, error) == -1
      && c->answer == NULL) {
    c->waiting = false;
    return -1;
  }
  free (*error); /* an answer came although sending failed: it says more */
  *error = NULL;
  if (wait_for_answer (c, name, deadline, error) == -1)
    return -1;
  return use_answer (c, ret, got_fd, class_, error);
}

int
control_client_send (struct control_client *c, const char *name, json_t *args, char **error)
{
  char *id;
  int r;

  *error = NULL;
  pump (c); /* a caller that only sends must not let the answers pile up at the server */
  id = wire_message (SEND_PREFIX "%s", name);
  if (c->lost || id == NULL) {
    *error = c->lost ? lost_message (c) : wire_message ("%s: out of memory", c->path);
    free (id);
    json_decref (args);
    return -1;
  }
  r = send_command (c, name, args, json_string (id), -1, deadline_after (SEND_MS), error);
  free (id);
  return r;
}

/* ---- events ---- */

int
control_client_fd (const struct control_client *c)
{
  return c->sock;
}

/* A signal ends the wait early, with 0: the caller may want to look at a flag. */
int
control_client_next_event (struct control_client *c, int timeout_ms, char **name, json_t **data,
                           char **error)
{
  int64_t deadline = deadline_after (timeout_ms);

  *name = NULL;
  *data = NULL;
  *error = NULL;
  for (;;) {
    struct event *e;
    int r;

    pump (c);
    e = c->events;
    if (e != NULL) {
      c->events = e->next;
      if (c->events == NULL)
        c->events_end = &c->events;
      c->nr_events--;
      *name = e->name;
      *data = e->data;
      free (e);
      return 1;
    }
    if (c->lost) {
      *error = lost_message (c);
      return -1;
    }
    r = wait_for (c, POLLIN, deadline);
    if (r == 0 || (r == -1 && errno == EINTR))
      return 0;
  }
}

/* ---- connecting ---- */

static char *
connect_message (const char *path, int err)
{
  struct stat st;

  if (err == ENOENT)
    return wire_message ("%s: no such control socket (is the server running?)", path);
  if (err == ECONNREFUSED && stat (path, &st) == 0 && !S_ISSOCK (st.st_mode))
    return wire_message ("%s: not a socket", path);
  if (err == ECONNREFUSED)
    return wire_message ("%s: nobody is listening (the server has ended)", path);
  if (err == EACCES)
    return wire_message ("%s: permission denied (only root and the server's user may connect)",
                         path);
  if (err == EAGAIN)
    return wire_message ("%s: the server accepts no connection (is it stopped?)", path);
  return wire_message ("%s: %s", path, strerror (err));
}

/* A full queue at the server is EAGAIN, and poll() cannot wait for that. */
static int
connect_until (int sock, const struct sockaddr_un *sa, int64_t deadline)
{
  const struct timespec nap = { .tv_nsec = 10 * 1000 * 1000 };

  while (connect (sock, (const struct sockaddr *) sa, sizeof *sa) == -1) {
    if (errno == EINTR)
      continue;
    if (errno != EAGAIN || ms_until (deadline) == 0)
      return -1;
    nanosleep (&nap, NULL);
  }
  return 0;
}

static struct control_client *
client_new (const char *path)
{
  struct control_client *c = calloc (1, sizeof *c);

  if (c == NULL)
    return NULL;
  c->sock = c->pending_fd = c->answer_fd = -1;
  c->events_end = &c->events;
  frame_init (&c->in);
  c->path = strdup (path);
  c->sock = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (c->path == NULL || c->sock == -1) {
    control_client_free (c);
    return NULL;
  }
  return c;
}

/* Put the path before what the server said. */
static void
name_path (const char *path, char **error)
{
  size_t n = strlen (path);
  char *text = *error;

  if (text != NULL && (strncmp (text, path, n) != 0 || text[n] != ':')) {
    *error = wire_message ("%s: %s", path, text);
    free (text);
  }
}

/* The greeting, or the reason why there is none. */
static int
await_greeting (struct control_client *c, int64_t deadline, char **error)
{
  json_t *version;

  c->waiting = true;
  if (wait_for_answer (c, "the connection", deadline, error) == -1)
    return -1;
  version = json_object_get (c->answer, "QMP");
  if (version == NULL) {
    use_answer (c, NULL, NULL, NULL, error);
    if (*error == NULL)
      *error = wire_message ("%s: the server does not speak the control protocol", c->path);
    return -1;
  }
  json_decref (c->answer);
  c->answer = NULL;
  return 0;
}

struct control_client *
control_client_connect (const char *path, int timeout_ms, char **error)
{
  int64_t deadline = deadline_after (timeout_ms);
  struct control_client *c;
  struct sockaddr_un sa;

  *error = NULL;
  if (wire_address (path, &sa, error) == -1)
    return NULL;
  c = client_new (path);
  if (c == NULL) {
    *error = wire_message ("%s: socket: %s", path, strerror (errno));
    return NULL;
  }
  if (connect_until (c->sock, &sa, deadline) == -1)
    *error = connect_message (path, errno);
  else if (await_greeting (c, deadline, error) == 0
           && control_client_call (c, "qmp_capabilities", NULL, -1, ms_until (deadline), NULL,
                                   NULL, NULL, error)
                  == 0)
    return c;
  control_client_free (c);
  name_path (path, error);
  return NULL;
}

void
control_client_free (struct control_client *c)
{
  if (c == NULL)
    return;
  while (c->events != NULL) {
    struct event *e = c->events;

    c->events = e->next;
    free (e->name);
    json_decref (e->data);
    free (e);
  }
  json_decref (c->answer);
  if (c->answer_fd != -1)
    close (c->answer_fd);
  if (c->pending_fd != -1)
    close (c->pending_fd);
  if (c->sock != -1)
    close (c->sock);
  frame_free (&c->in);
  free (c->path);
  free (c->reason);
  free (c);
}
