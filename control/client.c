/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The client side of the control protocol.
 *
 * Ids: a call's id is a number, so that the answer to a call that timed out is recognised and
 * dropped.  A command that nobody waits for has the string "send:NAME" as its id.  That comes back
 * with an error and says what failed, so nothing has to be remembered here.
 */

#include "config.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "control/client.h"
#include "control/link.h"
#include "control/name.h"
#include "control/wire.h"

#define SEND_MS 5000       /* control_client_send: for the server to take the line */
#define CONNECT_LOOK_MS 10 /* how often to try to connect to a server whose queue is full */

/* Wait for the answer to what was sent.  0 with c->answer set, or -1 with *ERROR set. */
static int
wait_for_answer (struct control_client *c, const char *what, int64_t deadline, char **error)
{
  for (;;) {
    link_pump (c);
    if (c->answer != NULL)
      break;
    if (c->lost) {
      *error = link_lost_message (c);
      break;
    }
    if (link_wait (c, POLLIN, deadline) == 0) {
      link_pump (c);
      if (c->answer == NULL)
        text_error (error, "%s: no answer to %s in time (is the server stopped?)", c->path, what);
      break;
    }
  }
  c->waiting = false;
  return c->answer != NULL ? 0 : -1;
}

/* Take c->answer apart. */
static int
use_answer (struct control_client *c, const struct control_call *call, char **error)
{
  json_t *answer = c->answer, *value;
  int fd = c->answer_fd, r = -1;

  c->answer = NULL;
  c->answer_fd = -1;
  if ((value = json_object_get (answer, "return")) != NULL && c->answer_fd_lost
      && call->got_fd != NULL)
    text_error (error,
                "%s: the descriptor in the answer could not be received "
                "(too many open files?)",
                c->path);
  else if (value != NULL) {
    if (call->ret != NULL)
      *call->ret = json_incref (value);
    if (call->got_fd != NULL) {
      *call->got_fd = fd;
      fd = -1;
    }
    r = 0;
  } else if ((value = json_object_get (answer, "error")) != NULL) {
    const char *name = json_string_value (json_object_get (value, "class"));
    const char *desc = json_string_value (json_object_get (value, "desc"));

    text_error (error, "%s", desc != NULL ? desc : "unknown error");
    if (call->class_ != NULL)
      *call->class_ = text_copy (name != NULL ? name : "GenericError");
  } else
    text_error (error, "%s: the server does not speak the control protocol", c->path);
  fd_close (&fd);
  json_decref (answer);
  return r;
}

int
control_client_begin (struct control_client *c, const struct control_call *call, char **error)
{
  *error = NULL;
  if (call->ret != NULL)
    *call->ret = NULL;
  if (call->got_fd != NULL)
    *call->got_fd = -1;
  if (call->class_ != NULL)
    *call->class_ = NULL;
  if (c->lost) {
    json_decref (call->args);
    *error = link_lost_message (c);
    return -1;
  }
  c->waiting = true;
  c->deadline = link_deadline (call->timeout_ms);
  int pass_fd = call->pass_fd != NULL ? *call->pass_fd : -1;
  json_t *id = json_integer (++c->last_id);
  if (link_send (c, call->command, call->args, id, pass_fd, c->deadline, error) == -1
      && c->answer == NULL) {
    c->waiting = false;
    return -1;
  }
  text_free (*error); /* an answer came although sending failed: it says more */
  *error = NULL;
  return 0;
}

int
control_client_finish (struct control_client *c, const struct control_call *call, char **error)
{
  if (wait_for_answer (c, call->command, c->deadline, error) == -1)
    return -1;
  return use_answer (c, call, error);
}

int
control_client_call (struct control_client *c, const struct control_call *call, char **error)
{
  if (control_client_begin (c, call, error) == -1)
    return -1;
  return control_client_finish (c, call, error);
}

int
control_client_send (struct control_client *c, const char *name, json_t *args, char **error)
{
  *error = NULL;
  link_pump (c); /* a caller that only sends must not let the answers pile up at the server */
  if (c->lost) {
    json_decref (args);
    *error = link_lost_message (c);
    return -1;
  }
  CLEANUP_TEXT char *id = text_printf (SEND_PREFIX "%s", name);
  return link_send (c, name, args, json_string (id), -1, link_deadline (SEND_MS), error);
}

/* ---- events ---- */

int
control_client_fd (const struct control_client *c)
{
  return c->sock;
}

bool
control_client_is_lost (const struct control_client *c)
{
  return c->lost;
}

bool
control_client_has_event (const struct control_client *c)
{
  return c->events != NULL;
}

/* A signal ends the wait early, because the caller may want to look at a flag. */
int
control_client_next_event (struct control_client *c, int timeout_ms, char **name, json_t **data,
                           char **error)
{
  int64_t deadline = link_deadline (timeout_ms);

  *name = NULL;
  *data = NULL;
  *error = NULL;
  for (;;) {
    link_pump (c);
    struct event *e = c->events;
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
      *error = link_lost_message (c);
      return -1;
    }
    if (timeout_ms == 0)
      return 0;
    int r = link_wait (c, POLLIN, deadline);
    if (r == 0 || (r == -1 && errno == EINTR))
      return 0;
  }
}

/* ---- connecting ---- */

static char *
connect_message (const char *path, int err)
{
  struct stat st;

  if ((err == ENOENT || err == ECONNREFUSED) && control_is_of_qemu (path))
    return text_printf ("%s: no worker mirrors this disk", path);
  if (err == ENOENT && strstr (path, "://") != NULL)
    return text_printf ("%s: this is a URI, not a control socket (CONTROL comes first)", path);
  if (err == ENOENT)
    return text_printf ("%s: no such control socket (is the server running?)", path);
  if (err == ECONNREFUSED && stat (path, &st) == 0 && !S_ISSOCK (st.st_mode))
    return text_printf ("%s: not a socket", path);
  if (err == ECONNREFUSED)
    return text_printf ("%s: nobody is listening (the server has ended)", path);
  if (err == EACCES)
    return text_printf ("%s: permission denied (only root and the server's user may connect)",
                        path);
  if (err == EAGAIN)
    return text_printf ("%s: the server accepts no connection (is it stopped?)", path);
  return text_printf ("%s: %s", path, strerror (err));
}

/* If the server's queue is full connect() says EAGAIN, and poll() cannot wait for that. */
static int
connect_until (int sock, const struct sockaddr_un *sa, int64_t deadline)
{
  while (connect (sock, (const struct sockaddr *)sa, sizeof *sa) == -1) {
    if (errno == EINTR)
      continue;
    if (errno != EAGAIN || link_ms_until (deadline) == 0)
      return -1;
    clock_sleep_ms (CONNECT_LOOK_MS);
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
  c->path = text_copy (path);
  c->sock = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (c->sock == -1) {
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
    text_error (error, "%s: %s", path, text);
    text_free (text);
  }
}

/* The greeting, or the reason why there is none. */
static int
await_greeting (struct control_client *c, int64_t deadline, char **error)
{
  c->waiting = true;
  if (wait_for_answer (c, "the connection", deadline, error) == -1)
    return -1;
  json_t *version = json_object_get (c->answer, "QMP");
  if (version == NULL) {
    use_answer (c, &(struct control_call){ 0 }, error);
    if (*error == NULL)
      text_error (error, "%s: the server does not speak the control protocol", c->path);
    return -1;
  }
  json_decref (c->answer);
  c->answer = NULL;
  return 0;
}

bool
control_nobody_listens (const char *name)
{
  CLEANUP_TEXT char *path = control_name_path (name);
  CLEANUP_TEXT char *error = NULL;
  struct sockaddr_un sa;

  if (wire_address (path, &sa, &error) == -1)
    return false;
  CLEANUP_FD int sock = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  return sock != -1 && connect (sock, (const struct sockaddr *)&sa, sizeof sa) == -1
         && (errno == ECONNREFUSED || errno == ENOENT);
}

struct control_client *
control_client_connect (const char *path, int timeout_ms, char **error)
{
  int64_t deadline = link_deadline (timeout_ms);
  CLEANUP_TEXT char *place = control_name_path (path);
  struct sockaddr_un sa;

  *error = NULL;
  if (wire_address (place, &sa, error) == -1)
    return NULL;
  struct control_client *c = client_new (path);
  if (c == NULL) {
    text_error (error, "%s: socket: %s", path, strerror (errno));
    return NULL;
  }
  if (connect_until (c->sock, &sa, deadline) == -1)
    *error = connect_message (path, errno);
  else if (await_greeting (c, deadline, error) == 0) {
    struct control_call call
        = { .command = "qmp_capabilities", .timeout_ms = link_ms_until (deadline) };
    if (control_client_call (c, &call, error) == 0)
      return c;
  }
  control_client_free (c);
  name_path (path, error);
  return NULL;
}

void
control_client_set_max_line (struct control_client *c, size_t bytes)
{
  c->in.max_line = bytes;
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
  fd_close (&c->answer_fd);
  fd_close (&c->pending_fd);
  fd_close (&c->sock);
  frame_free (&c->in);
  text_free (c->path);
  text_free (c->reason);
  free (c);
}
