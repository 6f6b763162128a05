/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The control server as a raw client sees it: greeting, negotiation, what is refused,
 * descriptors, and the socket's place in the file system.  Floods and limits are in
 * test-control-limits.c.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "unit.h"
#include "control-fixture.h"
#include "control/wire.h"

/* Proves: the greeting has QMP's shape, with our version. */
control_test (control, greeting)
{
  json_t *greeting, *m, *qemu;
  int sock;

  fixture_start (NULL);
  sock = raw_connect ();
  greeting = raw_read (sock, NULL);
  m = json_object_get (greeting, "QMP");
  qemu = json_object_get (json_object_get (m, "version"), "qemu");
  cr_assert_eq (json_integer_value (json_object_get (qemu, "major")), 0);
  cr_assert_eq (json_integer_value (json_object_get (qemu, "minor")), 1);
  cr_assert_eq (json_integer_value (json_object_get (qemu, "micro")), 0);
  cr_assert_str_eq (
    json_string_value (json_object_get (json_object_get (m, "version"), "package")),
    "nbdmirror 0.1.0");
  cr_assert_eq (json_array_size (json_object_get (m, "capabilities")), 0);
  json_decref (greeting);
  close (sock);
}

struct exchange {
  const char *line, *class_, *desc; /* class NULL: a return is expected */
};

static void
expect_exchanges (int sock, const struct exchange *e, size_t n)
{
  for (size_t i = 0; i < n; i++) {
    json_t *m = raw_call (sock, e[i].line);

    if (e[i].class_ == NULL)
      cr_assert_not_null (json_object_get (m, "return"), "%s", e[i].line);
    else {
      cr_assert_not_null (error_class (m), "no error for %s", e[i].line);
      cr_assert_str_eq (error_class (m), e[i].class_, "%s", e[i].line);
      cr_assert_not_null (strstr (error_desc (m), e[i].desc), "%s: %s", e[i].line, error_desc (m));
    }
    if (strstr (e[i].line, "\"id\": 7") != NULL)
      cr_assert_eq (json_integer_value (json_object_get (m, "id")), 7, "%s", e[i].line);
    else
      cr_assert_null (json_object_get (m, "id"));
    json_decref (m);
  }
}

/* Proves: nothing runs before the negotiation, wrong negotiations are refused and may be
 * repeated, and there is one only. */
control_test (control, negotiation)
{
  static const struct exchange e[] = {
    { "{\"execute\": \"echo\", \"id\": 7}\n", "CommandNotFound",
      "Expecting capabilities negotiation with 'qmp_capabilities'" },
    { "{\"execute\": \"qmp_capabilities\", \"arguments\": {\"x\": 1}, \"id\": 7}\n", "GenericError",
      "'x' is unexpected" },
    { "{\"execute\": \"qmp_capabilities\", \"arguments\": {\"enable\": 1}}\n", "GenericError",
      "expected: array" },
    { "{\"execute\": \"qmp_capabilities\", \"arguments\": {\"enable\": [1]}}\n", "GenericError",
      "expected: string" },
    { "{\"execute\": \"qmp_capabilities\", \"arguments\": {\"enable\": [\"oob\"]}}\n",
      "GenericError", "'oob' is not available" },
    { "{\"execute\": \"echo\"}\n", "CommandNotFound", "Expecting capabilities negotiation" },
    { "{\"execute\": \"qmp_capabilities\", \"arguments\": {\"enable\": []}, \"id\": 7}\n", NULL,
      NULL },
    { "{\"execute\": \"qmp_capabilities\", \"id\": 7}\n", "CommandNotFound", "already complete" },
    { "{\"execute\": \"echo\", \"id\": 7}\n", NULL, NULL },
  };
  json_t *greeting;
  int sock;

  fixture_start (NULL);
  sock = raw_connect ();
  greeting = raw_read (sock, NULL);
  expect_exchanges (sock, e, sizeof e / sizeof e[0]);
  cr_assert_eq (atomic_load (&fx.commands), 1, "a command ran before the negotiation");
  json_decref (greeting);
  close (sock);
}

/* Proves: malformed requests are answered as in QMP, with their id, and the connection stays. */
control_test (control, malformed_requests)
{
  static const struct exchange e[] = {
    { "{\"id\": 7}\n", "GenericError", "lacks member 'execute'" },
    { "{}\n", "GenericError", "lacks member 'execute'" },
    { "{\"execute\": 1, \"id\": 7}\n", "GenericError", "'execute' must be a string" },
    { "{\"execute\": \"echo\", \"arguments\": [], \"id\": 7}\n", "GenericError",
      "'arguments' must be an object" },
    { "{\"execute\": \"echo\", \"arguments\": null}\n", "GenericError", "must be an object" },
    { "{\"execute\": \"echo\", \"junk\": 1, \"id\": 7}\n", "GenericError",
      "'junk' is unexpected" },
    { "{\"exec-oob\": \"echo\", \"id\": 7}\n", "GenericError", "'exec-oob' is unexpected" },
    { "{\"execute\": \"nonsense\", \"id\": 7}\n", "CommandNotFound",
      "The command nonsense has not been found" },
    { "[]\n", "GenericError", "must be a JSON object" },
    { "nonsense\n", "GenericError", "JSON parse error" },
    { "{\"execute\": \"echo\n", "GenericError", "JSON parse error" },
    { "\xff\xfe\n", "GenericError", "JSON parse error" },
    { "{\"execute\": \"odd\", \"id\": 7}\n", "GenericError", "cannot open /tmp/??" },
    { "\r\n\n{\"execute\": \"echo\", \"id\": 7}\r\n", NULL, NULL },
  };
  int sock;

  fixture_start (NULL);
  sock = raw_open ();
  expect_exchanges (sock, e, sizeof e / sizeof e[0]);
  close (sock);
}

/* Proves: ids of any type come back as they were, and several commands in one piece are answered in
 * order. */
control_test (control, ids_and_pipelining)
{
  static const char *const ids[] = { "null", "true", "\"text\"", "[1, {\"a\": 2}]", "0.5" };
  char lines[1024] = "";
  int sock;

  fixture_start (NULL);
  sock = raw_open ();
  for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
    size_t n = strlen (lines);

    snprintf (lines + n, sizeof lines - n, "{\"execute\": \"echo\", \"arguments\": {\"n\": %zu}, \"id\": %s}\n",
              i, ids[i]);
  }
  raw_send (sock, lines);
  for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
    json_t *m = raw_read (sock, NULL);
    char *id = json_dumps (json_object_get (m, "id"), JSON_ENCODE_ANY);

    cr_assert_eq (json_integer_value (json_object_get (json_object_get (m, "return"), "n")),
                  (json_int_t) i);
    cr_assert_str_eq (id, ids[i]);
    free (id);
    json_decref (m);
  }
  close (sock);
}

/* Proves: events reach everybody who has negotiated, and nobody else, with QMP's time stamp. */
control_test (control, events)
{
  int a, b, silent;
  json_t *m, *stamp;

  fixture_start (NULL);
  a = raw_open ();
  b = raw_open ();
  silent = raw_connect ();
  json_decref (raw_read (silent, NULL));
  json_decref (raw_call (a, "{\"execute\": \"event\", \"arguments\": {\"k\": 5}}\n"));
  json_decref (raw_read (a, NULL)); /* event and return, in either order */
  m = raw_read (b, NULL);
  cr_assert_str_eq (json_string_value (json_object_get (m, "event")), "EVENT");
  cr_assert_eq (json_integer_value (json_object_get (json_object_get (m, "data"), "k")), 5);
  stamp = json_object_get (m, "timestamp");
  cr_assert_gt (json_integer_value (json_object_get (stamp, "seconds")), 1500000000);
  cr_assert_lt (json_integer_value (json_object_get (stamp, "microseconds")), 1000000);
  json_decref (m);
  /* The first thing it hears is the answer, not the event. */
  m = raw_call (silent, "{\"execute\": \"qmp_capabilities\"}\n");
  cr_assert_not_null (json_object_get (m, "return"));
  json_decref (m);
  close (a);
  close (b);
  close (silent);
}

/* Proves: an answer that fits into no line becomes an error, so a caller is not left waiting. */
control_test (control, answer_too_long)
{
  char line[FRAME_MAX_LINE + 2];
  json_t *m;
  int sock;

  fixture_start (NULL);
  sock = raw_open ();
  m = raw_call (sock, "{\"execute\": \"large\", \"arguments\": {\"size\": 100000}, \"id\": 7}\n");
  cr_assert_not_null (strstr (error_desc (m), "does not fit"));
  cr_assert_eq (json_integer_value (json_object_get (m, "id")), 7);
  json_decref (m);
  /* An id that fills the line by itself cannot even go with the error. */
  memset (line, 'i', sizeof line);
  memcpy (line, "{\"execute\":\"echo\",\"id\":\"", 24);
  memcpy (line + FRAME_MAX_LINE - 2, "\"}\n", 4);
  m = raw_call (sock, line);
  if (json_object_get (m, "return") == NULL)
    cr_assert_not_null (strstr (error_desc (m), "does not fit"));
  json_decref (m);
  m = raw_call (sock, "{\"execute\": \"large\", \"arguments\": {\"size\": 60000}}\n");
  cr_assert_not_null (json_object_get (m, "return"));
  json_decref (m);
  close (sock);
}

/* ---- descriptors ---- */

static int
open_file (const char *name, ino_t *ino)
{
  char path[160];
  struct stat st;
  int fd;

  snprintf (path, sizeof path, "%s/%s", fx.dir, name);
  fd = open (path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  cr_assert_neq (fd, -1);
  unlink (path);
  fstat (fd, &st);
  *ino = st.st_ino;
  return fd;
}

/* The next answer must be that of "fd" with this inode (0: no descriptor came). */
static void
expect_fd (int sock, ino_t ino)
{
  struct stat st;
  int got;
  json_t *m = raw_read (sock, &got), *ret = json_object_get (m, "return");

  cr_assert_not_null (ret);
  if (ino == 0) {
    cr_assert_not_null (json_object_get (ret, "none"), "got another command's descriptor");
    cr_assert_eq (got, -1);
  }
  else {
    cr_assert_eq ((ino_t) json_integer_value (json_object_get (ret, "inode")), ino);
    cr_assert_neq (got, -1, "the descriptor did not come back");
    fstat (got, &st);
    cr_assert_eq (st.st_ino, ino);
    cr_assert (fcntl (got, F_GETFD) & FD_CLOEXEC);
    close (got);
  }
  json_decref (m);
}

#define FD_LINE "{\"execute\": \"fd\"}\n"

/* Proves: a descriptor goes to the command whose bytes it came with, also when the kernel glues
 * the messages together because the server is late. */
control_test (control, fd_belongs_to_its_line)
{
  ino_t ino1, ino2;
  int f1, f2, a, b;

  fixture_start (NULL);
  f1 = open_file ("1", &ino1);
  f2 = open_file ("2", &ino2);
  a = raw_open ();
  b = raw_open ();
  for (int round = 0; round < 20; round++) {
    /* Makes sure that all of the following is there before the server reads it. */
    raw_send (b, "{\"execute\": \"stall\", \"arguments\": {\"ms\": 30}}\n");
    raw_send (a, FD_LINE);
    raw_send_fds (a, FD_LINE, &f1, 1);
    raw_send (a, FD_LINE FD_LINE);
    raw_send_fds (a, FD_LINE FD_LINE, &f2, 1); /* with the first byte, so the first one's */
    raw_send (a, "{\"execute\": ");
    raw_send_fds (a, "\"fd\"", &f1, 1); /* in the middle of a line */
    raw_send (a, "}\n" FD_LINE);
    raw_send_fds (a, "\n", &f2, 1); /* with a blank line before its command */
    raw_send (a, FD_LINE);
    expect_fd (a, 0);
    expect_fd (a, ino1);
    expect_fd (a, 0);
    expect_fd (a, 0);
    expect_fd (a, ino2);
    expect_fd (a, 0);
    expect_fd (a, ino1);
    expect_fd (a, 0);
    expect_fd (a, ino2);
    json_decref (raw_read (b, NULL));
  }
  close (a);
  close (b);
  close (f1);
  close (f2);
}

/* Proves: no descriptor leaks: surplus ones, those of bad lines, of commands that want none, of
 * lines never finished. */
control_test (control, no_fd_leaks)
{
  unsigned before;
  ino_t ino;
  int f, sock, many[12];

  fixture_start (NULL);
  f = open_file ("f", &ino);
  for (int i = 0; i < 12; i++)
    many[i] = f;
  sock = raw_open ();
  json_decref (raw_call (sock, "{\"execute\": \"echo\"}\n"));
  before = count_fds ();
  for (int round = 0; round < 50; round++) {
    raw_send_fds (sock, FD_LINE, many, 3);
    expect_fd (sock, ino);
    raw_send_fds (sock, FD_LINE, many, 12); /* more than there is room for */
    expect_fd (sock, ino);
    raw_send_fds (sock, "nonsense\n", many, 3);
    json_decref (raw_read (sock, NULL));
    raw_send (sock, FD_LINE); /* must not get that one's */
    expect_fd (sock, 0);
    raw_send_fds (sock, "{\"execute\": 1}\n", many, 1);
    json_decref (raw_read (sock, NULL));
    raw_send (sock, FD_LINE);
    expect_fd (sock, 0);
    raw_send_fds (sock, "{\"execute\": \"echo\"}\n", many, 2);
    json_decref (raw_read (sock, NULL));
    raw_send (sock, FD_LINE); /* nothing was left over for it */
    expect_fd (sock, 0);
  }
  wait_until (count_fds () == before);
  raw_send_fds (sock, "\n", many, 1);
  raw_send_fds (sock, "{\"execute\"", many, 5);
  close (sock);
  wait_until (atomic_load (&fx.closed) == 1);
  wait_until (count_fds () == before - 2);
  close (f);
}

/* Proves: when the server cannot take a descriptor in, the command is told so and does not run
 * without it; when it cannot accept, it neither spins nor forgets the client. */
control_test (control, out_of_descriptors)
{
  struct rlimit old, tight;
  int f, sock, waiting, highest;
  json_t *m;
  ino_t ino;
  unsigned polls;

  fixture_start (NULL);
  f = open_file ("f", &ino);
  sock = raw_open ();
  waiting = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  cr_assert_neq (waiting, -1);
  highest = dup (f); /* the lowest free number; everything below is in use */
  close (highest);
  getrlimit (RLIMIT_NOFILE, &old);
  tight = old;
  tight.rlim_cur = (rlim_t) highest;
  setrlimit (RLIMIT_NOFILE, &tight);

  raw_send_fds (sock, "{\"execute\": \"fd\", \"id\": 7}\n", &f, 1);
  m = raw_read (sock, NULL);
  cr_assert_not_null (error_desc (m), "ran without its descriptor");
  cr_assert_not_null (strstr (error_desc (m), "could not be received"), "%s", error_desc (m));
  json_decref (m);

  {
    struct sockaddr_un sa = { .sun_family = AF_UNIX };

    memcpy (sa.sun_path, fx.path, strlen (fx.path) + 1);
    cr_assert_eq (connect (waiting, (struct sockaddr *) &sa, sizeof sa), 0);
  }
  polls = atomic_load (&fx.polls);
  fixture_sleep_ms (500);
  /* The thread wakes every 20 ms by itself. */
  cr_assert_lt (atomic_load (&fx.polls) - polls, 60, "spins: %u polls",
                atomic_load (&fx.polls) - polls);
  m = raw_call (sock, "{\"execute\": \"echo\"}\n");
  cr_assert_not_null (json_object_get (m, "return"));
  json_decref (m);

  setrlimit (RLIMIT_NOFILE, &old);
  m = raw_read (waiting, NULL);
  cr_assert_not_null (json_object_get (m, "QMP"));
  json_decref (m);
  close (waiting);
  close (sock);
  close (f);
}

/* ---- ends ---- */

/* Proves: a client that shuts its sending half still gets every answer, also one that comes
 * later, and then the end. */
control_test (control, half_close)
{
  json_t *m;
  int a, b;

  fixture_start (NULL);
  a = raw_open ();
  b = raw_open ();
  raw_send (a, "{\"execute\": \"echo\", \"id\": 1}\n{\"execute\": \"defer\", \"id\": 2}\n");
  shutdown (a, SHUT_WR);
  m = raw_read (a, NULL);
  cr_assert_eq (json_integer_value (json_object_get (m, "id")), 1);
  json_decref (m);
  fixture_sleep_ms (50);
  cr_assert_eq (atomic_load (&fx.closed), 0);
  m = raw_call (b, "{\"execute\": \"answer\"}\n");
  cr_assert (json_is_true (json_object_get (json_object_get (m, "return"), "found")));
  json_decref (m);
  m = raw_read (a, NULL);
  cr_assert_eq (json_integer_value (json_object_get (m, "id")), 2);
  cr_assert_not_null (json_object_get (m, "return"));
  json_decref (m);
  cr_assert (raw_ended (a));
  wait_until (atomic_load (&fx.closed) == 1);
  close (a);
  close (b);
}

/* Proves: what was sent before a client closed is run, all of it, though nobody hears the
 * answers; an unfinished line is not. */
control_test (control, send_and_close)
{
  int sock;

  fixture_start (NULL);
  sock = raw_open ();
  for (int i = 0; i < 300; i++)
    raw_send (sock, "{\"execute\": \"echo\"}\n");
  raw_send (sock, "{\"execute\": \"echo\"}");
  close (sock);
  wait_until (atomic_load (&fx.closed) == 1);
  cr_assert_eq (atomic_load (&fx.commands), 300, "%u", atomic_load (&fx.commands));
}

/* Proves: a peer with an unanswered command that goes is reported once, and nothing is sent
 * after it. */
control_test (control, vanished_with_deferred_command)
{
  json_t *m;
  int a, b;

  fixture_start (NULL);
  a = raw_open ();
  b = raw_open ();
  raw_send (a, "{\"execute\": \"defer\", \"id\": 2}\n");
  wait_until (atomic_load (&fx.commands) == 1);
  close (a);
  wait_until (atomic_load (&fx.closed) == 1);
  json_decref (raw_read (b, NULL)); /* the event CLOSED */
  m = raw_call (b, "{\"execute\": \"answer\"}\n");
  cr_assert (json_is_false (json_object_get (json_object_get (m, "return"), "found")));
  json_decref (m);
  cr_assert_eq (atomic_load (&fx.peers), 1);
  close (b);
}

/* Proves: a command may close its own peer or another one: the answer arrives first, then the
 * end; later commands of the closed peer do not run. */
control_test (control, close_from_a_command)
{
  char line[100];
  json_t *m;
  int a, b;

  fixture_start (NULL);
  a = raw_open ();
  b = raw_open ();
  m = raw_call (a, "{\"execute\": \"serial\"}\n");
  snprintf (line, sizeof line, "{\"execute\": \"close-serial\", \"arguments\": {\"serial\": %lld}}\n",
            (long long) json_integer_value (
              json_object_get (json_object_get (m, "return"), "serial")));
  json_decref (m);
  m = raw_call (b, line);
  cr_assert_not_null (json_object_get (m, "return"));
  json_decref (m);
  cr_assert (raw_ended (a));
  wait_until (atomic_load (&fx.closed) == 1);
  json_decref (raw_read (b, NULL)); /* the event CLOSED */

  m = raw_call (b, "{\"execute\": \"close\"}\n{\"execute\": \"echo\"}\n");
  cr_assert_not_null (json_object_get (m, "return"));
  json_decref (m);
  cr_assert (raw_ended (b));
  wait_until (atomic_load (&fx.closed) == 2);
  cr_assert_eq (atomic_load (&fx.commands), 3);
  close (a);
  close (b);
}

/* Proves: at the end of the server every peer gets what was queued and the end, `closed` is
 * called for each, and the socket is gone. */
control_test (control, end_of_the_server)
{
  int a, b;

  fixture_start (NULL);
  a = raw_open ();
  b = raw_open ();
  fixture_stop ();
  cr_assert_eq (atomic_load (&fx.closed), 2);
  cr_assert (raw_ended (a));
  cr_assert (raw_ended (b));
  cr_assert_eq (access (fx.path, F_OK), -1);
  close (a);
  close (b);
}

/* ---- the socket's place ---- */

static mode_t
socket_mode (void)
{
  struct stat st;

  cr_assert_eq (lstat (fx.path, &st), 0);
  cr_assert (S_ISSOCK (st.st_mode));
  return st.st_mode & 07777;
}

static void
expect_refusal (const char *path, const char *reason)
{
  static const struct control_server_ops none = { 0 };
  char *error;

  cr_assert_null (control_server_new (path, "x", &none, NULL, &error));
  cr_assert_eq (strncmp (error, path, strlen (path)), 0, "%s", error);
  cr_assert_not_null (strstr (error, reason), "%s", error);
  free (error);
}

/* Proves: the mode is 0600 whatever the umask, and the umask (shared by all threads) stays as
 * it was. */
control_test (control, socket_mode)
{
  static const mode_t masks[] = { 0, 022, 077, 0777 };

  for (size_t i = 0; i < sizeof masks / sizeof masks[0]; i++) {
    umask (masks[i]);
    fixture_start (NULL);
    cr_assert_eq (socket_mode (), 0600, "umask %o: mode %o", masks[i], socket_mode ());
    cr_assert_eq (umask (022), masks[i]);
    fixture_stop ();
  }
}

/* Proves that there is no instant with another mode: the mode comes from bind() itself. */
control_test (control, socket_mode_at_bind)
{
  struct sockaddr_un sa;
  char *error;
  int sock = socket (AF_UNIX, SOCK_STREAM, 0);

  umask (0);
  cr_assert_eq (wire_address (fx.path, &sa, &error), 0);
  cr_assert_eq (fchmod (sock, 0600), 0);
  cr_assert_eq (bind (sock, (struct sockaddr *) &sa, sizeof sa), 0);
  cr_assert_eq (socket_mode (), 0600);
  close (sock);
}

/* Proves: a socket left over from a server that died is replaced; a live one, and anything
 * else, is not. */
control_test (control, stale_socket)
{
  char other[200];
  int f;

  fixture_start (NULL);
  snprintf (other, sizeof other, "%s/link", fx.dir);
  cr_assert_eq (link (fx.path, other), 0);
  expect_refusal (fx.path, "another server is listening");
  fixture_stop ();
  cr_assert_eq (rename (other, fx.path), 0); /* a socket nobody listens on */
  fixture_start (NULL);
  close (raw_open ());
  fixture_stop ();

  f = open (fx.path, O_CREAT | O_WRONLY, 0600);
  close (f);
  expect_refusal (fx.path, "not a socket");
  cr_assert_eq (access (fx.path, F_OK), 0);
  unlink (fx.path);
  cr_assert_eq (symlink ("elsewhere", fx.path), 0);
  expect_refusal (fx.path, "not a socket");
}

/* Take part in a race for the socket: wait for START to close, say on RESULT who won, stay
 * until END closes. */
static void
race_for_socket (int start, int result, int end)
{
  static const struct control_server_ops none = { 0 };
  struct control_server *s;
  char *error, verdict, c;

  (void) !read (start, &c, 1);
  s = control_server_new (fx.path, "x", &none, NULL, &error);
  verdict = s != NULL ? 'w' : strstr (error, "another server") != NULL ? 'l' : '?';
  (void) !write (result, &verdict, 1);
  (void) !read (end, &c, 1);
  control_server_free (s);
  _exit (0);
}

/* Proves: of several servers that find the same stale socket one gets it, and can be reached. */
control_test (control, race_for_a_stale_socket)
{
  enum { N = 6 };

  for (int round = 0; round < 100; round++) {
    int start[2], result[2], end[2], winners = 0;
    struct sockaddr_un sa;
    int stale = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char *error;

    cr_assert_eq (wire_address (fx.path, &sa, &error), 0);
    cr_assert_eq (bind (stale, (struct sockaddr *) &sa, sizeof sa), 0);
    close (stale);
    cr_assert (pipe (start) == 0 && pipe (result) == 0 && pipe (end) == 0);
    for (int i = 0; i < N; i++) {
      pid_t child = fork ();

      cr_assert_neq (child, -1);
      if (child == 0) {
        close (start[1]);
        close (end[1]);
        race_for_socket (start[0], result[1], end[0]);
      }
    }
    close (start[1]);
    for (int i = 0; i < N; i++) {
      char verdict = '?';

      cr_assert_eq (read (result[0], &verdict, 1), 1);
      cr_assert_neq (verdict, '?');
      winners += verdict == 'w';
    }
    cr_assert_eq (winners, 1, "%d servers think that the socket is theirs", winners);
    close (raw_connect ());
    close (end[1]);
    for (int i = 0; i < N; i++)
      cr_assert_gt (wait (NULL), 0);
    cr_assert_eq (access (fx.path, F_OK), -1);
    close (start[0]);
    close (result[0]);
    close (result[1]);
    close (end[0]);
  }
}

/* Proves: paths that cannot be bound are refused with the path and the reason. */
control_test (control, bad_paths)
{
  char path[200];

  snprintf (path, sizeof path, "%s/none/s", fx.dir);
  expect_refusal (path, "No such file or directory");
  memset (path, 'x', sizeof path);
  memcpy (path, fx.dir, strlen (fx.dir));
  path[strlen (fx.dir)] = '/';
  path[sizeof path - 1] = '\0';
  expect_refusal (path, "too long");
  expect_refusal ("", "empty");
}

/* Proves: the server removes only the socket it bound itself, not one that took its place. */
control_test (control, foreign_socket_stays)
{
  int f;

  fixture_start (NULL);
  unlink (fx.path);
  f = open (fx.path, O_CREAT | O_WRONLY, 0600);
  close (f);
  fixture_stop ();
  cr_assert_eq (access (fx.path, F_OK), 0, "removed a file that is not its own");
}

/* Proves: a relative path is still found after the process changed its directory. */
control_test (control, relative_path)
{
  static const struct control_server_ops none = { 0 };
  struct control_server *s;
  char *error;

  cr_assert_eq (chdir (fx.dir), 0);
  s = control_server_new ("s", "x", &none, NULL, &error);
  cr_assert_not_null (s);
  cr_assert_eq (chdir ("/"), 0);
  cr_assert_eq (access (fx.path, F_OK), 0);
  control_server_free (s);
  cr_assert_eq (access (fx.path, F_OK), -1);
}

/* Proves: the caller's descriptors are waited for and reported. */
control_test (control, extra_descriptors)
{
  static const struct control_server_ops none = { 0 };
  struct pollfd extra[2];
  struct control_server *s;
  int64_t begin;
  char *error;
  int p[2];

  cr_assert_eq (pipe (p), 0);
  s = control_server_new (fx.path, "x", &none, NULL, &error);
  extra[0] = (struct pollfd){ .fd = p[0], .events = POLLIN, .revents = POLLHUP };
  extra[1] = (struct pollfd){ .fd = -1 };
  begin = wire_now_ms ();
  cr_assert_eq (control_server_poll (s, 50, extra, 2), 0);
  cr_assert_geq (wire_now_ms () - begin, 49);
  cr_assert_eq (extra[0].revents, 0);
  cr_assert_eq (write (p[1], "x", 1), 1);
  cr_assert_eq (control_server_poll (s, 5000, extra, 2), 0);
  cr_assert_eq (extra[0].revents, POLLIN);
  cr_assert_lt (wire_now_ms () - begin, 4000);
  control_server_free (s);
  close (p[0]);
  close (p[1]);
}
