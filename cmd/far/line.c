/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * JSON objects through a line that may die.  See line.h.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/text.h"
#include "cmd/far/line.h"

#define SIGN_MS 5000  /* between two signs of life */
#define DEAD_MS 60000 /* without any */
#define LOOK_MS 200
#define PART_BYTES 65536
#define MAX_BYTES (256U << 20) /* of one object */

/* ---- signs of life ---- */

/* Only where there is room: else the line is busy, and what it carries is a sign as well. */
static void *
send_signs (void *opaque)
{
  struct far_line *l = opaque;
  struct pollfd stop = { .fd = l->stop_fd, .events = POLLIN };

  while (poll (&stop, 1, SIGN_MS) == 0) {
    if (pthread_mutex_trylock (&l->lock) != 0)
      continue;
    ssize_t n = write (l->out, "\n", 1);
    pthread_mutex_unlock (&l->lock);
    if (n == -1 && errno != EAGAIN && errno != EINTR)
      break;
  }
  return NULL;
}

int
far_line_begin (struct far_line *l, int in, int out)
{
  *l = (struct far_line){ .in = in, .out = out, .stop_fd = fd_wake_new () };
  int flags = fcntl (out, F_GETFL);
  if (l->stop_fd == -1 || flags == -1 || fcntl (out, F_SETFL, flags | O_NONBLOCK) == -1)
    goto failed;
  pthread_mutex_init (&l->lock, NULL);
  errno = pthread_create (&l->thread, NULL, send_signs, l);
  if (errno == 0)
    return 0;
  pthread_mutex_destroy (&l->lock);

failed:
  fd_close (&l->stop_fd);
  return -1;
}

void
far_line_end (struct far_line *l)
{
  fd_wake (l->stop_fd);
  pthread_join (l->thread, NULL);
  pthread_mutex_destroy (&l->lock);
  fd_close (&l->stop_fd);
  free (l->text);
  l->text = NULL;
}

/* ---- objects ---- */

static int
send_all (struct far_line *l, const char *data, size_t len)
{
  uint64_t end = clock_ms () + DEAD_MS;

  while (len > 0) {
    ssize_t n = write (l->out, data, len);
    if (n > 0) {
      data += n;
      len -= (size_t)n;
      end = clock_ms () + DEAD_MS;
      continue;
    }
    if (n == -1 && errno != EAGAIN && errno != EINTR)
      return -1;
    struct pollfd p = { .fd = l->out, .events = POLLOUT };
    if (clock_ms () >= end) {
      errno = ETIMEDOUT;
      return -1;
    }
    poll (&p, 1, LOOK_MS);
  }
  return 0;
}

int
far_line_send (struct far_line *l, const json_t *o, char **error)
{
  char *text = json_dumps (o, JSON_COMPACT);

  if (text == NULL)
    return text_error (error, "what is to be sent is no valid text");
  pthread_mutex_lock (&l->lock);
  int r = send_all (l, text, strlen (text));
  if (r == 0)
    r = send_all (l, "\n", 1);
  int err = errno;
  pthread_mutex_unlock (&l->lock);
  free (text);
  return r == 0 ? 0 : text_error (error, "the connection is lost: %s", strerror (err));
}

/* Take the first whole line out of what was received.  False: there is none. */
static bool
take_line (struct far_line *l, char **line)
{
  char *end = l->have > 0 ? memchr (l->text, '\n', l->have) : NULL;

  if (end == NULL)
    return false;
  size_t len = (size_t)(end - l->text);
  *line = text_printf ("%.*s", (int)len, l->text);
  l->have -= len + 1;
  memmove (l->text, end + 1, l->have);
  return true;
}

/* Read some more.  1, 0 at the end, or -1 with errno. */
static int
read_more (struct far_line *l)
{
  if (l->room - l->have < PART_BYTES) {
    size_t room = l->room * 2 + PART_BYTES;
    char *more = room <= MAX_BYTES ? realloc (l->text, room) : NULL;
    if (more == NULL) {
      errno = ENOMEM;
      return -1;
    }
    l->text = more;
    l->room = room;
  }
  ssize_t n = read (l->in, l->text + l->have, l->room - l->have);
  if (n == -1 && (errno == EAGAIN || errno == EINTR))
    return 1;
  if (n > 0)
    l->have += (size_t)n;
  return n > 0 ? 1 : (int)n;
}

/* The next line that is not empty; NULL as far_line_receive(). */
static char *
next_line (struct far_line *l, bool (*go_on) (void *), void *opaque, char **error)
{
  uint64_t heard = clock_ms ();
  char *line = NULL;

  *error = NULL;
  for (;;) {
    while (take_line (l, &line)) {
      if (line[0] != '\0')
        return line;
      text_free (line);
    }
    struct pollfd p = { .fd = l->in, .events = POLLIN };
    int r = poll (&p, 1, LOOK_MS);
    if (go_on != NULL && !go_on (opaque)) {
      text_error (error, "cancelled");
      return NULL;
    }
    if (r > 0 && (r = read_more (l)) <= 0) {
      if (r == -1)
        text_error (error, "the connection is lost: %s", strerror (errno));
      return NULL;
    }
    if (r > 0)
      heard = clock_ms ();
    else if (clock_ms () - heard >= DEAD_MS) {
      text_error (error, "the connection is lost: nothing came for %d s", DEAD_MS / 1000);
      return NULL;
    }
  }
}

json_t *
far_line_receive (struct far_line *l, bool (*go_on) (void *), void *opaque, char **error)
{
  json_error_t why;
  char *line = next_line (l, go_on, opaque, error);

  if (line == NULL)
    return NULL;
  json_t *o = json_loads (line, JSON_REJECT_DUPLICATES, &why);
  if (!json_is_object (o)) {
    text_error (error, "this is no answer of nbdmirror: '%.60s'", line);
    json_decref (o);
    o = NULL;
  }
  text_free (line);
  return o;
}

bool
far_line_is_closed (const struct far_line *l)
{
  struct pollfd p = { .fd = l->in, .events = POLLRDHUP };

  return poll (&p, 1, 0) == 1 && (p.revents & (POLLHUP | POLLRDHUP | POLLERR | POLLNVAL)) != 0;
}
