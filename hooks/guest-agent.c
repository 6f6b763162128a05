/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * nbdmirror-guest-agent: freezes and thaws the file systems of a guest through its qemu-ga, as the
 * commands around the instant of a backup.
 *
 *   nbdmirror-guest-agent freeze SOCKET [SECONDS]
 *   nbdmirror-guest-agent thaw SOCKET [SECONDS]
 *
 * Every wait ends after SECONDS.  A freeze that fails, comes too late or is interrupted is followed
 * by a thaw: nobody knows what the guest has done of it.  A thaw is tried again until the guest
 * says that it is thawed.  If this process is killed, the thaw that nbdmirror runs afterwards is
 * enough.
 *
 * The agent may have answers to somebody else's questions in store.  So each connection begins with
 * guest-sync-delimited: its answer comes behind a byte 0xff, which no other answer has.
 */

#include "config.h"

#include <errno.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fd.h"
#include "base/stop-signals.h"
#include "base/text.h"

#define LIMIT_S 20
#define LIMIT_MAX_S 3600
#define THAW_MS 5000 /* after a freeze that has failed */
#define AGAIN_MS 200
#define ANSWER_MAX 65536

struct agent {
  const char *path;
  int fd;
  uint64_t end_ms;
  char text[ANSWER_MAX];
  size_t have;
};

static volatile sig_atomic_t interrupted;

static void
on_signal (int sig)
{
  interrupted = sig;
}

__attribute__ ((format (printf, 1, 2))) static void
say (const char *format, ...)
{
  va_list ap;

  va_start (ap, format);
  CLEANUP_TEXT char *text = text_vprintf (format, ap);
  va_end (ap);
  fprintf (stderr, "nbdmirror-guest-agent: %s\n", text);
}

/* ---- the agent's protocol ---- */

/* Wait until EVENTS can be had.  -1 with *ERROR. */
static int
wait_for_agent (const struct agent *a, short events, char **error)
{
  struct pollfd p = { .fd = a->fd, .events = events };
  uint64_t now = clock_ms ();

  if (interrupted)
    return text_error (error, "interrupted");
  if (now >= a->end_ms || poll (&p, 1, (int)(a->end_ms - now)) == 0)
    return text_error (error, "%s: the guest's agent does not answer in time", a->path);
  return 0;
}

static int
send_text (struct agent *a, const char *text, char **error)
{
  for (size_t left = strlen (text); left > 0;) {
    if (wait_for_agent (a, POLLOUT, error) == -1)
      return -1;
    ssize_t n = send (a->fd, text, left, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n == -1 && errno != EAGAIN && errno != EINTR)
      return text_error (error, "%s: %s", a->path, strerror (errno));
    text += n > 0 ? n : 0;
    left -= n > 0 ? (size_t)n : 0;
  }
  return 0;
}

/* The next line without its end, for text_free(); NULL with *ERROR. */
static char *
next_line (struct agent *a, char **error)
{
  for (;;) {
    char *end = memchr (a->text, '\n', a->have);
    if (end != NULL) {
      char *line = text_printf ("%.*s", (int)(end - a->text), a->text);
      a->have -= (size_t)(end + 1 - a->text);
      memmove (a->text, end + 1, a->have);
      return line;
    }
    if (wait_for_agent (a, POLLIN, error) == -1)
      return NULL;
    ssize_t n = a->have < ANSWER_MAX
                    ? recv (a->fd, a->text + a->have, ANSWER_MAX - a->have, MSG_DONTWAIT)
                    : 0;
    if (n == 0 || (n == -1 && errno != EAGAIN && errno != EINTR)) {
      text_error (error, "%s: %s", a->path,
                  n == 0 ? "the guest's agent has hung up" : strerror (errno));
      return NULL;
    }
    a->have += n > 0 ? (size_t)n : 0;
  }
}

/* What LINE returns, a new reference; NULL with *ERROR. */
static json_t *
returned (const char *line, char **error)
{
  json_t *o = json_loads (line, JSON_DECODE_ANY, NULL);
  json_t *ret = json_incref (json_object_get (o, "return"));
  const char *why = json_string_value (json_object_get (json_object_get (o, "error"), "desc"));

  if (ret == NULL)
    text_error (error, "the guest's agent says: %s", why != NULL ? why : line);
  json_decref (o);
  return ret;
}

static json_t *
ask (struct agent *a, const char *command, char **error)
{
  CLEANUP_TEXT char *text = text_printf ("{\"execute\": \"%s\"}\n", command);

  if (send_text (a, text, error) == -1)
    return NULL;
  CLEANUP_TEXT char *line = next_line (a, error);
  return line != NULL ? returned (line, error) : NULL;
}

/* Connect, and leave old answers behind. */
static int
begin (struct agent *a, char **error)
{
  json_int_t id = (json_int_t)(clock_ns () & 0x7fffffff);
  CLEANUP_TEXT char *text
      = text_printf ("\xff{\"execute\": \"guest-sync-delimited\", \"arguments\": {\"id\": %lld}}\n",
                     (long long)id);

  a->have = 0;
  a->fd = fd_connect (a->path);
  if (a->fd == -1)
    return text_error (error, "%s: %s", a->path, strerror (errno));
  if (send_text (a, text, error) == -1)
    return -1;
  for (;;) {
    CLEANUP_TEXT char *line = next_line (a, error);
    const char *mark = line != NULL ? strrchr (line, '\xff') : NULL;
    if (line == NULL)
      return -1;
    json_t *ret = mark != NULL ? returned (mark + 1, NULL) : NULL;
    bool ours = json_is_integer (ret) && json_integer_value (ret) == id;
    json_decref (ret);
    if (ours)
      return 0;
  }
}

/* ---- freeze and thaw ---- */

static int
thaw_once (struct agent *a, char **error)
{
  int r = begin (a, error);
  json_t *count = r == 0 ? ask (a, "guest-fsfreeze-thaw", error) : NULL;
  json_t *status = count != NULL ? ask (a, "guest-fsfreeze-status", error) : NULL;

  r = -1;
  if (json_is_string (status) && strcmp (json_string_value (status), "thawed") == 0)
    r = 0;
  else if (status != NULL)
    text_error (error, "the guest's file systems are still frozen");
  json_decref (count);
  json_decref (status);
  fd_close (&a->fd);
  return r;
}

/* Until A->end_ms, however often it fails. */
static int
thaw (struct agent *a)
{
  char *error = NULL;
  uint64_t end = a->end_ms;

  for (;;) {
    text_free (error);
    error = NULL;
    /* An agent that does not answer may do so on another connection.  This process may have been
     * stopped beyond the end. */
    uint64_t now = clock_ms ();
    a->end_ms = now + (now < end ? end - now : 0) / 2 + AGAIN_MS;
    if (thaw_once (a, &error) == 0)
      return EXIT_SUCCESS;
    if (clock_ms () + AGAIN_MS >= end)
      break;
    clock_sleep_ms (AGAIN_MS);
  }
  say ("not thawed: %s", error);
  text_free (error);
  return EXIT_FAILURE;
}

static int
freeze (struct agent *a)
{
  CLEANUP_TEXT char *error = NULL;
  json_t *count = begin (a, &error) == 0 ? ask (a, "guest-fsfreeze-freeze", &error) : NULL;
  bool good = json_is_integer (count) && json_integer_value (count) > 0 && !interrupted;

  if (!good && error == NULL)
    text_error (&error, interrupted ? "interrupted" : "no file system of the guest was frozen");
  json_decref (count);
  fd_close (&a->fd);
  if (good)
    return EXIT_SUCCESS;
  say ("not frozen: %s", error);
  interrupted = 0;
  a->end_ms = clock_ms () + THAW_MS;
  thaw (a);
  return EXIT_FAILURE;
}

static int
usage (void)
{
  say ("it is called as 'freeze SOCKET [SECONDS]' or 'thaw SOCKET [SECONDS]', and SECONDS are 1 to"
       " %d (default %d)",
       LIMIT_MAX_S, LIMIT_S);
  return 2;
}

int
main (int argc, char **argv)
{
  static struct agent a = { .fd = -1 };
  long seconds = LIMIT_S;
  char *end = NULL;

  if (argc == 4) {
    errno = 0;
    seconds = strtol (argv[3], &end, 10);
  }
  if (argc < 3 || argc > 4 || seconds < 1 || seconds > LIMIT_MAX_S || (end != NULL && *end != '\0'))
    return usage ();
  a.path = argv[2];
  a.end_ms = clock_ms () + (uint64_t)seconds * MS_PER_S;
  if (strcmp (argv[1], "thaw") == 0)
    return thaw (&a); /* a signal is no reason to leave a guest frozen, but SIGKILL and the limit */
  if (strcmp (argv[1], "freeze") != 0)
    return usage ();
  stop_signals_catch (on_signal);
  return freeze (&a);
}
