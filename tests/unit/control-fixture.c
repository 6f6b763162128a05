/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * A control server in a thread, and raw clients; see control-fixture.h.
 */

#include "config.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "control/wire.h"
#define UNIT_NO_TESTS
#include "tests/unit/control-fixture.h"

#define PATIENCE_MS 10000

/* This also checks in the server's thread, and in a program of several files, which the macros
 * of unit.h are not for. */
#define check(condition_, ...)                                                                     \
  do {                                                                                             \
    if (!(condition_)) {                                                                           \
      fprintf (stderr, "%s:%d: failed: %s: ", __FILE__, __LINE__, #condition_);                    \
      fprintf (stderr, " " __VA_ARGS__);                                                           \
      fputc ('\n', stderr);                                                                        \
      abort ();                                                                                    \
    }                                                                                              \
  } while (0)

struct fixture fx;

const struct control_limits fixture_limits = {
  .max_peers = CONTROL_MAX_PEERS,
  .reserved = CONTROL_RESERVED,
  .line_ms = 400,
  .idle_ms = 60000,
  .output_ms = 400,
  .linger_ms = 300,
  .turn_ms = 50,
  .max_output = CONTROL_MAX_OUTPUT,
};

static pthread_t thread;
static atomic_bool stopping;

/* The one deferred command; only the server's thread looks at it. */
static struct control_peer *deferred;
static json_t *deferred_id;
static uint64_t needed_serial; /* of the peer that has said "needed" */

/* ---- the server ---- */

static void
forget_deferred (void)
{
  deferred = NULL;
  json_decref (deferred_id);
  deferred_id = NULL;
}

static void
command_fd (struct control_peer *peer, json_t *id, int fd)
{
  struct stat st;

  if (fd == -1) {
    control_reply (peer, id, json_pack ("{s:b}", "none", 1), -1);
    return;
  }
  fstat (fd, &st);
  control_reply (peer, id, json_pack ("{s:I}", "inode", (json_int_t)st.st_ino), fd);
  close (fd);
}

static void
command_burst (struct control_peer *peer, json_t *args, json_t *id)
{
  size_t size = (size_t)json_integer_value (json_object_get (args, "size"));
  char *text = malloc (size + 1);

  memset (text, 'x', size);
  text[size] = '\0';
  for (json_int_t n = json_integer_value (json_object_get (args, "n")); n > 0; n--)
    control_event (fx.server, NULL, "BURST", json_pack ("{s:s}", "text", text));
  free (text);
  control_reply (peer, id, NULL, -1);
}

static void
command_large (struct control_peer *peer, json_t *args, json_t *id)
{
  size_t size = (size_t)json_integer_value (json_object_get (args, "size"));
  char *text = malloc (size + 1);

  memset (text, 'x', size);
  text[size] = '\0';
  control_reply (peer, id, json_pack ("{s:s}", "text", text), -1);
  free (text);
}

static void
command_close_serial (struct control_peer *peer, json_t *args, json_t *id)
{
  uint64_t serial = (uint64_t)json_integer_value (json_object_get (args, "serial"));

  for (unsigned i = 0; i < fx.server->nr_peers; i++) {
    if (control_peer_serial (fx.server->peers[i]) == serial)
      control_peer_close (fx.server->peers[i]);
  }
  control_reply (peer, id, NULL, -1);
}

static void
command (void *opaque, struct control_peer *peer, const char *name, json_t *args, json_t *id,
         int fd)
{
  check (opaque == &fx);
  check (json_is_object (args));
  atomic_fetch_add (&fx.commands, 1);
  if (strcmp (name, "fd") == 0) {
    command_fd (peer, id, fd);
    return;
  }
  if (fd != -1)
    close (fd);
  if (strcmp (name, "echo") == 0)
    control_reply (peer, id, json_incref (args), -1);
  else if (strcmp (name, "event") == 0) {
    control_event (fx.server, NULL, "EVENT", json_incref (args));
    control_reply (peer, id, NULL, -1);
  } else if (strcmp (name, "burst") == 0)
    command_burst (peer, args, id);
  else if (strcmp (name, "defer") == 0) {
    forget_deferred ();
    deferred = peer;
    deferred_id = json_incref (id);
  } else if (strcmp (name, "answer") == 0) {
    if (deferred != NULL)
      control_reply (deferred, deferred_id, json_pack ("{s:b}", "late", 1), -1);
    control_reply (peer, id, json_pack ("{s:b}", "found", deferred != NULL), -1);
    forget_deferred ();
  } else if (strcmp (name, "close") == 0) {
    control_reply (peer, id, NULL, -1);
    control_peer_close (peer);
  } else if (strcmp (name, "close-serial") == 0)
    command_close_serial (peer, args, id);
  else if (strcmp (name, "serial") == 0)
    control_reply (peer, id, json_pack ("{s:I}", "serial", (json_int_t)control_peer_serial (peer)),
                   -1);
  else if (strcmp (name, "worker") == 0) {
    control_peer_set_worker (peer, true);
    control_reply (peer, id, NULL, -1);
  } else if (strcmp (name, "needed") == 0) {
    needed_serial = control_peer_serial (peer);
    control_reply (peer, id, NULL, -1);
  } else if (strcmp (name, "large") == 0)
    command_large (peer, args, id);
  else if (strcmp (name, "odd") == 0)
    control_error (peer, id, "GenericError", "cannot open /tmp/\xff\xfe");
  else if (strcmp (name, "stall") == 0) {
    fixture_sleep_ms ((int)json_integer_value (json_object_get (args, "ms")));
    control_reply (peer, id, NULL, -1);
  } else
    control_error (peer, id, "CommandNotFound", "The command %s has not been found", name);
}

static void
closed (void *opaque, struct control_peer *peer)
{
  check (opaque == &fx);
  if (deferred == peer)
    forget_deferred ();
  control_reply (peer, NULL, NULL, -1); /* must do no harm */
  control_event (fx.server, NULL, "CLOSED", NULL);
  atomic_fetch_add (&fx.closed, 1);
}

static bool
needed (void *opaque, const struct control_peer *peer)
{
  check (opaque == &fx);
  return control_peer_serial (peer) == needed_serial;
}

static const struct control_server_ops ops
    = { .command = command, .closed = closed, .needed = needed };

static void *
serve (void *arg)
{
  struct control_server *s = arg;

  while (!atomic_load (&stopping)) {
    struct pollfd tick = { .fd = -1 };
    unsigned before = atomic_load (&fx.commands), ran;

    check (control_server_poll (s, 20, &tick, 1) == 0);
    ran = atomic_load (&fx.commands) - before;
    if (ran > atomic_load (&fx.most_commands))
      atomic_store (&fx.most_commands, ran);
    atomic_fetch_add (&fx.polls, 1);
    atomic_store (&fx.peers, control_server_peers (s));
  }
  return NULL;
}

void
fixture_init (void)
{
  memset (&fx, 0, sizeof fx);
  snprintf (fx.dir, sizeof fx.dir, "/tmp/test-control.XXXXXX");
  check (mkdtemp (fx.dir) != NULL);
  snprintf (fx.path, sizeof fx.path, "%s/s", fx.dir);
}

void
fixture_start (const struct control_limits *limits)
{
  char *error;

  fx.server = control_server_new (fx.path, "nbdmirror 0.1.0", &ops, &fx, &error);
  check (fx.server != NULL, "%s", error);
  if (limits != NULL)
    fx.server->limits = *limits;
  atomic_store (&stopping, false);
  check (pthread_create (&thread, NULL, serve, fx.server) == 0);
}

void
fixture_stop (void)
{
  if (fx.server == NULL)
    return;
  atomic_store (&stopping, true);
  pthread_join (thread, NULL);
  control_server_free (fx.server);
  fx.server = NULL;
  forget_deferred ();
}

void
fixture_fini (void)
{
  if (fx.dir[0] == '\0')
    return; /* done */
  fixture_stop ();
  unlink (fx.path);
  check (rmdir (fx.dir) == 0, "%s: %s", fx.dir, strerror (errno));
  fx.dir[0] = '\0';
}

/* ---- raw clients ---- */

void
fixture_sleep_ms (int ms)
{
  struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000 };

  nanosleep (&ts, NULL);
}

int
raw_connect (void)
{
  struct sockaddr_un sa = { .sun_family = AF_UNIX };
  struct timeval patience = { .tv_sec = PATIENCE_MS / 1000 };
  int sock = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

  check (sock != -1);
  memcpy (sa.sun_path, fx.path, strlen (fx.path) + 1);
  check (connect (sock, (struct sockaddr *)&sa, sizeof sa) == 0, "%s", strerror (errno));
  setsockopt (sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  setsockopt (sock, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  return sock;
}

int
raw_open (void)
{
  int sock = raw_connect ();
  json_t *m = raw_read (sock, NULL);

  check (json_object_get (m, "QMP") != NULL, "no greeting");
  json_decref (m);
  m = raw_call (sock, "{\"execute\": \"qmp_capabilities\"}\n");
  check (json_object_get (m, "return") != NULL);
  json_decref (m);
  return sock;
}

void
raw_send (int sock, const char *text)
{
  raw_send_fds (sock, text, NULL, 0);
}

void
raw_send_fds (int sock, const char *text, const int *fds, unsigned nr_fds)
{
  union {
    char buf[CMSG_SPACE (16 * sizeof (int))];
    struct cmsghdr align;
  } control;
  struct iovec iov = { .iov_base = (void *)text, .iov_len = strlen (text) };
  struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

  if (nr_fds > 0) {
    memset (&control, 0, sizeof control);
    msg.msg_control = control.buf;
    msg.msg_controllen = CMSG_SPACE (nr_fds * sizeof (int));
    struct cmsghdr *c = CMSG_FIRSTHDR (&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN (nr_fds * sizeof (int));
    memcpy (CMSG_DATA (c), fds, nr_fds * sizeof (int));
  }
  check (sendmsg (sock, &msg, MSG_NOSIGNAL) == (ssize_t)iov.iov_len, "%s", strerror (errno));
}

bool
raw_try_send_fd (int sock, const char *text, int fd)
{
  size_t len = strlen (text);
  ssize_t n = wire_send (sock, text, len, fd);

  if (n == -1 && errno == EAGAIN)
    return false;
  check (n == (ssize_t)len, "%s", strerror (errno));
  return true;
}

json_t *
raw_read (int sock, int *got_fd)
{
  struct frame_buffer b;
  json_t *m = NULL;
  int fd = -1;
  bool lost = false;

  frame_init (&b);
  for (;;) {
    struct pollfd p = { .fd = sock, .events = POLLIN };
    enum frame_result r = frame_next (&b, &m, &(char *){ NULL });
    char buf[4096];

    if (r == FRAME_OBJECT)
      break;
    check (r == FRAME_NONE, "the server sent a bad line");
    check (poll (&p, 1, PATIENCE_MS) == 1, "the server says nothing");
    ssize_t n = wire_recv (sock, buf, sizeof buf, &fd, &lost);
    if (n <= 0)
      break;
    frame_append (&b, buf, (size_t)n);
  }
  frame_free (&b);
  if (got_fd != NULL)
    *got_fd = fd;
  else if (fd != -1)
    close (fd);
  return m;
}

json_t *
raw_call (int sock, const char *line)
{
  raw_send (sock, line);
  json_t *m = raw_read (sock, NULL);
  check (m != NULL, "no answer to %.60s", line);
  return m;
}

bool
raw_ended (int sock)
{
  uint64_t until = clock_ms () + PATIENCE_MS;
  char buf[4096];

  while (clock_ms () < until) {
    struct pollfd p = { .fd = sock, .events = POLLIN };

    if (poll (&p, 1, 1000) != 1)
      continue;
    ssize_t n = recv (sock, buf, sizeof buf, 0);
    if (n == 0 || (n == -1 && errno == ECONNRESET))
      return true;
  }
  return false;
}

const char *
error_class (const json_t *m)
{
  return json_string_value (json_object_get (json_object_get (m, "error"), "class"));
}

const char *
error_desc (const json_t *m)
{
  return json_string_value (json_object_get (json_object_get (m, "error"), "desc"));
}

unsigned
count_fds (void)
{
  DIR *d = opendir ("/proc/self/fd");
  unsigned n = 0;

  while (readdir (d) != NULL)
    n++;
  closedir (d);
  return n;
}
