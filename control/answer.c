/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * What the control server sends: answers, errors, events, queued for each peer as lines.
 *
 * An answer must fit into a line.  One that does not is turned into an error, so that each command
 * is answered, whatever the caller hands over.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "control/peer.h"
#include "control/wire.h"

static void
output_free (struct control_peer *p, struct peer_output *o)
{
  p->out_bytes -= o->len - o->sent;
  if (o->fd != -1)
    p->out_fds--;
  fd_close (&o->fd);
  free (o->line);
  free (o);
}

void
peer_drop_output (struct control_peer *p)
{
  while (p->out != NULL) {
    struct peer_output *o = p->out;

    p->out = o->next;
    output_free (p, o);
  }
  p->out_end = &p->out;
}

void
peer_go_deaf (struct control_peer *p)
{
  p->deaf = true;
  peer_drop_output (p);
}

void
peer_flush (struct control_peer *p)
{
  while (p->out != NULL && p->state != PEER_GONE) {
    struct peer_output *o = p->out;
    ssize_t n = wire_send (p->sock, o->line + o->sent, o->len - o->sent, o->fd);

    if (n == -1) {
      if (errno == EPIPE || errno == ECONNRESET)
        peer_go_deaf (p);
      else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != ENOBUFS)
        p->state = PEER_GONE;
      return;
    }
    p->out_progress = clock_ms ();
    if (o->fd != -1)
      p->out_fds--;
    fd_close (&o->fd);
    o->sent += (size_t)n;
    p->out_bytes -= (size_t)n;
    if (o->sent == o->len) {
      p->out = o->next;
      if (p->out == NULL)
        p->out_end = &p->out;
      output_free (p, o);
    }
  }
}

/* Queue LINE (stolen) with FD (stolen, -1 none). */
static void
queue_line (struct control_peer *p, char *line, size_t len, int fd)
{
  struct peer_output *o = calloc (1, sizeof *o);

  if (o == NULL) {
    free (line);
    fd_close (&fd);
    p->state = PEER_GONE; /* it would wait for this line for ever */
    return;
  }
  *o = (struct peer_output){ .len = len, .fd = fd, .line = line };
  if (p->out == NULL)
    p->out_progress = clock_ms ();
  *p->out_end = o;
  p->out_end = &o->next;
  p->out_bytes += len;
  if (fd != -1)
    p->out_fds++;
  if (p->out_bytes > p->server->limits.max_output) {
    peer_flush (p); /* many lines may have been queued in one poll */
    if (p->out_bytes > p->server->limits.max_output)
      p->state = PEER_GONE;
  }
}

bool
peer_queue (struct control_peer *p, json_t *message, int fd)
{
  size_t len;
  char *line = message != NULL ? frame_encode (message, &len) : NULL;

  json_decref (message);
  if (line == NULL) {
    p->state = PEER_GONE;
    return false;
  }
  if (len - 1 > FRAME_MAX_LINE) {
    free (line);
    return false;
  }
  queue_line (p, line, len, fd);
  return true;
}

static bool
takes_output (const struct control_peer *p)
{
  return p->state == PEER_OPEN && !p->deaf;
}

void
peer_queue_error (struct control_peer *p, json_t *id, const char *class_, const char *desc)
{
  if (!takes_output (p))
    return;
  json_t *m = json_pack ("{s:{s:s, s:o}}", "error", "class", class_, "desc", wire_text (desc));
  if (m != NULL && id != NULL)
    json_object_set (m, "id", id);
  if (!peer_queue (p, m, -1) && takes_output (p)) {
    /* The id, or the text, is nearly a line long by itself. */
    m = json_pack ("{s:{s:s, s:s}}", "error", "class", "GenericError", "desc",
                   "the answer does not fit into a line");
    peer_queue (p, m, -1);
  }
}

static void
answered (struct control_peer *p)
{
  if (p->outstanding > 0)
    p->outstanding--;
}

void
control_reply (struct control_peer *p, json_t *id, json_t *ret, int fd)
{
  int copy = -1;

  answered (p);
  if (!takes_output (p)) {
    json_decref (ret);
    return;
  }
  if (fd >= 0) {
    copy = fcntl (fd, F_DUPFD_CLOEXEC, 0);
    if (copy == -1) {
      CLEANUP_TEXT char *text = text_printf ("cannot pass the descriptor: %s", strerror (errno));
      json_decref (ret);
      peer_queue_error (p, id, "GenericError", text);
      return;
    }
  }
  json_t *m = json_pack ("{s:o}", "return", ret != NULL ? ret : json_object ());
  if (m != NULL && id != NULL)
    json_object_set (m, "id", id);
  if (!peer_queue (p, m, copy)) {
    fd_close (&copy);
    peer_queue_error (p, id, "GenericError", "the answer does not fit into a line");
  }
}

void
control_error (struct control_peer *p, json_t *id, const char *class_, const char *fmt, ...)
{
  va_list args;

  answered (p);
  va_start (args, fmt);
  CLEANUP_TEXT char *text = text_vprintf (fmt, args);
  va_end (args);
  peer_queue_error (p, id, class_, text);
}

void
control_event (struct control_server *s, struct control_peer *peer, const char *name, json_t *data)
{
  int64_t date_us = clock_date_us ();
  json_t *m = json_pack ("{s:s, s:o, s:{s:I, s:I}}", "event", name, "data",
                         data != NULL ? data : json_object (), "timestamp", "seconds",
                         (json_int_t)(date_us / US_PER_S), "microseconds",
                         (json_int_t)(date_us % US_PER_S));
  size_t len;
  char *line = m != NULL ? frame_encode (m, &len) : NULL;
  json_decref (m);
  if (line == NULL || len - 1 > FRAME_MAX_LINE) {
    free (line);
    return; /* an event is news, not an answer: nobody waits for it */
  }
  for (unsigned i = 0; i < s->nr_peers; i++) {
    struct control_peer *p = s->peers[i];

    if ((peer != NULL && p != peer) || !p->negotiated || !takes_output (p))
      continue;
    char *copy = malloc (len);
    if (copy == NULL)
      continue;
    memcpy (copy, line, len);
    queue_line (p, copy, len, -1);
  }
  free (line);
}
