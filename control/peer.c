/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * One client of the control server; see peer.h for its states.
 *
 * What the server keeps for a client is bounded.  While a client has many commands unanswered, or
 * much output unread, its input is left in the kernel's buffer, and its writes block there.  Events
 * do not wait for that, and so there is a limit on output.
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "control/peer.h"
#include "control/wire.h"

#define READ_SIZE 4096u
#define READS_PER_TURN 32        /* so also the most commands of one peer in one poll */
#define MAX_OUTSTANDING 64u      /* commands the caller has not answered */
#define BUSY_OUTPUT (64u * 1024) /* no further command is read above this */
#define BUSY_OUT_FDS 4u

/* ---- commands ---- */

static void
negotiate (struct control_peer *p, json_t *id, json_t *args)
{
  const char *key;
  json_t *value, *capability;
  size_t i;

  if (p->negotiated) {
    control_error (p, id, "CommandNotFound",
                   "Capabilities negotiation is already complete, command ignored");
    return;
  }
  json_object_foreach (args, key, value)
  {
    if (strcmp (key, "enable") != 0) {
      control_error (p, id, "GenericError", "Parameter '%s' is unexpected", key);
      return;
    }
    if (!json_is_array (value)) {
      control_error (p, id, "GenericError", "Invalid parameter type for 'enable', expected: array");
      return;
    }
    json_array_foreach (value, i, capability)
    {
      const char *name = json_string_value (capability);

      if (name == NULL)
        control_error (p, id, "GenericError",
                       "Invalid parameter type for 'enable[%zu]', expected: string", i);
      else
        control_error (p, id, "GenericError", "Capability '%s' is not available", name);
      return; /* the greeting offers none */
    }
  }
  p->negotiated = true;
  control_reply (p, id, NULL, -1);
}

/* Is REQUEST what QMP calls a command?  If not, say why in TEXT. */
static bool
check_request (json_t *request, char *text, size_t size)
{
  const char *key;
  json_t *value;

  json_object_foreach (request, key, value)
  {
    if (strcmp (key, "execute") == 0) {
      if (!json_is_string (value)) {
        snprintf (text, size, "QMP input member 'execute' must be a string");
        return false;
      }
    } else if (strcmp (key, "arguments") == 0) {
      if (!json_is_object (value)) {
        snprintf (text, size, "QMP input member 'arguments' must be an object");
        return false;
      }
    } else if (strcmp (key, "id") != 0) {
      snprintf (text, size, "QMP input member '%s' is unexpected", key);
      return false;
    }
  }
  if (json_object_get (request, "execute") == NULL) {
    snprintf (text, size, "QMP input lacks member 'execute'");
    return false;
  }
  return true;
}

static void
close_pending_fd (struct control_peer *p)
{
  fd_close (&p->pending_fd);
  p->fd_lost = false;
}

static void
run_request (struct control_peer *p, json_t *request)
{
  struct control_server *s = p->server;
  json_t *id = json_object_get (request, "id");
  json_t *args = json_object_get (request, "arguments");
  json_t *none = NULL;
  char text[256];

  p->outstanding++;
  if (!check_request (request, text, sizeof text)) {
    control_error (p, id, "GenericError", "%s", text);
    return;
  }
  const char *name = json_string_value (json_object_get (request, "execute"));
  if (args == NULL)
    args = none = json_object ();
  if (args == NULL)
    p->state = PEER_GONE;
  else if (strcmp (name, "qmp_capabilities") == 0)
    negotiate (p, id, args);
  else if (!p->negotiated)
    control_error (p, id, "CommandNotFound",
                   "Expecting capabilities negotiation with 'qmp_capabilities'");
  else if (p->fd_lost)
    control_error (p, id, "GenericError",
                   "%s: the descriptor passed along could not be received "
                   "(too many open files in the server?)",
                   name);
  else {
    int fd = p->pending_fd;
    p->pending_fd = -1;
    s->ops->command (s->opaque, p, name, args, id, fd);
  }
  json_decref (none);
}

/* ---- input ---- */

/* Too much of this peer's is waiting already. */
static bool
is_busy (const struct control_peer *p)
{
  return p->outstanding >= MAX_OUTSTANDING || p->out_bytes > BUSY_OUTPUT
         || p->out_fds >= BUSY_OUT_FDS;
}

static void
take_line (struct control_peer *p)
{
  json_t *request;
  char *error;

  switch (frame_next (&p->in, &request, &error)) {
  case FRAME_NONE:
    if (!frame_partial (&p->in))
      p->line_start = 0; /* it was a blank line: a descriptor with it waits for the next */
    else if (p->line_start == 0)
      p->line_start = clock_ms ();
    return;
  case FRAME_OBJECT:
    run_request (p, request);
    json_decref (request);
    break;
  case FRAME_BAD:
    peer_queue_error (p, NULL, "GenericError", error);
    text_free (error);
    break;
  case FRAME_TOO_LONG:
    peer_queue_error (p, NULL, "GenericError", "line too long: at most 65536 bytes are allowed");
    control_peer_close (p);
    break;
  case FRAME_NOMEM:
    p->state = PEER_GONE;
    break;
  }
  p->line_start = 0;
  close_pending_fd (p);
}

static void
throw_input_away (struct control_peer *p)
{
  char buf[READ_SIZE];

  for (int i = 0; i < READS_PER_TURN; i++) {
    ssize_t n = recv (p->sock, buf, sizeof buf, MSG_DONTWAIT);

    if (n > 0 || (n == -1 && errno == EINTR))
      continue;
    if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK))
      p->state = PEER_GONE;
    return;
  }
}

static void
read_input (struct control_peer *p, int64_t until)
{
  char buf[READ_SIZE];

  for (int i = 0; i < READS_PER_TURN; i++) {
    int64_t now = clock_ms ();
    if (p->state != PEER_OPEN || p->eof || is_busy (p) || now >= until)
      return;
    ssize_t n = wire_recv (p->sock, buf, sizeof buf, &p->pending_fd, &p->fd_lost);
    if (n == 0) {
      p->eof = true; /* an unfinished line is not run: its sender may have died in the middle */
      p->line_start = 0;
      return;
    }
    if (n == -1) {
      if (errno != EAGAIN && errno != EWOULDBLOCK) {
        p->state = PEER_GONE;
        return;
      }
      /* Only here is it the peer's fault that the line is not complete. */
      if (p->line_start != 0 && now - p->line_start >= p->server->limits.line_ms) {
        peer_queue_error (p, NULL, "GenericError", "a line was begun and not finished in time");
        control_peer_close (p);
      }
      return;
    }
    p->last_input = now;
    if (frame_append (&p->in, buf, (size_t)n) == -1) {
      p->state = PEER_GONE;
      return;
    }
    take_line (p);
  }
}

void
peer_serve (struct control_peer *p, short revents, int64_t until)
{
  if (revents & (POLLHUP | POLLERR))
    peer_go_deaf (p);
  if (p->state == PEER_LINGERING)
    throw_input_away (p);
  else
    read_input (p, until);
  if ((revents & (POLLHUP | POLLERR)) && (p->eof || is_busy (p) || p->state != PEER_OPEN))
    p->state = PEER_GONE;
}

/* ---- life ---- */

struct control_peer *
peer_new (struct control_server *s, int sock, pid_t pid, uid_t uid)
{
  struct control_peer *p = calloc (1, sizeof *p);

  if (p == NULL)
    return NULL;
  p->server = s;
  p->state = PEER_OPEN;
  p->sock = sock;
  p->pid = pid;
  p->uid = uid;
  p->serial = ++s->last_serial;
  p->last_input = clock_ms ();
  p->pending_fd = -1;
  p->out_end = &p->out;
  frame_init (&p->in);
  peer_queue (p,
              json_pack ("{s:{s:{s:{s:i, s:i, s:i}, s:s}, s:[]}}", "QMP", "version", "qemu",
                         "major", 0, "minor", 1, "micro", 0, "package", s->package, "capabilities"),
              -1);
  return p;
}

void
peer_free (struct control_peer *p)
{
  peer_drop_output (p);
  close_pending_fd (p);
  frame_free (&p->in);
  close (p->sock);
  free (p);
}

short
peer_events (const struct control_peer *p)
{
  short events = 0;

  if (p->state == PEER_LINGERING || (p->state == PEER_OPEN && !p->eof && !is_busy (p)))
    events |= POLLIN;
  if (p->out != NULL)
    events |= POLLOUT;
  return events;
}

int64_t
peer_deadline (const struct control_peer *p)
{
  const struct control_limits *l = &p->server->limits;
  int64_t t = INT64_MAX;

  if (p->state == PEER_LINGERING)
    return p->linger_until;
  if (p->state == PEER_OPEN && p->line_start != 0 && !is_busy (p))
    t = p->line_start + l->line_ms;
  if (p->out != NULL && p->out_progress + l->output_ms < t)
    t = p->out_progress + l->output_ms;
  return t;
}

bool
peer_is_idle (const struct control_peer *p, int64_t now)
{
  return p->state == PEER_OPEN && !p->worker && p->outstanding == 0 && p->out == NULL
         && now - p->last_input >= p->server->limits.idle_ms;
}

void
peer_check (struct control_peer *p, int64_t now)
{
  const struct control_limits *l = &p->server->limits;

  if (p->state == PEER_LINGERING) {
    if (now >= p->linger_until)
      p->state = PEER_GONE;
    return;
  }
  /* A busy peer's input is not read, so its unfinished line is not its fault. */
  if (p->line_start != 0 && is_busy (p))
    p->line_start = now;
  if (p->line_start != 0 && now - p->line_start >= l->line_ms)
    read_input (p, INT64_MAX); /* cuts it off unless the rest has come meanwhile */
  if (p->out != NULL && now - p->out_progress >= l->output_ms)
    p->state = PEER_GONE;
  if (p->state == PEER_OPEN && p->eof && p->outstanding == 0)
    control_peer_close (p);
}

void
peer_linger (struct control_peer *p, int64_t now)
{
  shutdown (p->sock, SHUT_WR);
  close_pending_fd (p);
  frame_free (&p->in);
  p->state = PEER_LINGERING;
  p->linger_until = now + p->server->limits.linger_ms;
}

void
control_peer_close (struct control_peer *p)
{
  if (p->state == PEER_OPEN)
    p->state = PEER_CLOSING;
}

pid_t
control_peer_pid (const struct control_peer *p)
{
  return p->pid;
}

uid_t
control_peer_uid (const struct control_peer *p)
{
  return p->uid;
}

uint64_t
control_peer_serial (const struct control_peer *p)
{
  return p->serial;
}

void
control_peer_set_worker (struct control_peer *p, bool worker)
{
  p->worker = worker;
}
