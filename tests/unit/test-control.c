/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The control server as a raw client sees it: greeting, negotiation, what is refused, how a
 * connection ends.  Floods and limits are in test-control-limits.c, descriptors in
 * test-control-fds.c, the socket's place in test-control-socket.c.
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

#include "base/clock.h"
#include "tests/unit/control-fixture.h"
#include "tests/unit/unit.h"

/* Proves: the greeting has QMP's shape, with our version. */
control_test (control, greeting)
{
  fixture_start (NULL);
  int sock = raw_connect ();
  json_t *greeting = raw_read (sock, NULL);
  json_t *m = json_object_get (greeting, "QMP");
  json_t *qemu = json_object_get (json_object_get (m, "version"), "qemu");
  cr_assert_eq (json_integer_value (json_object_get (qemu, "major")), 0);
  cr_assert_eq (json_integer_value (json_object_get (qemu, "minor")), 1);
  cr_assert_eq (json_integer_value (json_object_get (qemu, "micro")), 0);
  cr_assert_str_eq (json_string_value (json_object_get (json_object_get (m, "version"), "package")),
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

  fixture_start (NULL);
  int sock = raw_connect ();
  json_t *greeting = raw_read (sock, NULL);
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
    { "{\"execute\": \"echo\", \"junk\": 1, \"id\": 7}\n", "GenericError", "'junk' is unexpected" },
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

  fixture_start (NULL);
  int sock = raw_open ();
  expect_exchanges (sock, e, sizeof e / sizeof e[0]);
  close (sock);
}

/* Proves: ids of any type come back as they were, and several commands in one piece are answered in
 * order. */
control_test (control, ids_and_pipelining)
{
  static const char *const ids[] = { "null", "true", "\"text\"", "[1, {\"a\": 2}]", "0.5" };
  char lines[1024] = "";

  fixture_start (NULL);
  int sock = raw_open ();
  for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
    size_t n = strlen (lines);

    snprintf (lines + n, sizeof lines - n,
              "{\"execute\": \"echo\", \"arguments\": {\"n\": %zu}, \"id\": %s}\n", i, ids[i]);
  }
  raw_send (sock, lines);
  for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
    json_t *m = raw_read (sock, NULL);
    char *id = json_dumps (json_object_get (m, "id"), JSON_ENCODE_ANY);

    cr_assert_eq (json_integer_value (json_object_get (json_object_get (m, "return"), "n")),
                  (json_int_t)i);
    cr_assert_str_eq (id, ids[i]);
    free (id);
    json_decref (m);
  }
  close (sock);
}

/* Proves: events reach everybody who has negotiated, and nobody else, with QMP's time stamp. */
control_test (control, events)
{
  fixture_start (NULL);
  int a = raw_open ();
  int b = raw_open ();
  int silent = raw_connect ();
  json_decref (raw_read (silent, NULL));
  json_decref (raw_call (a, "{\"execute\": \"event\", \"arguments\": {\"k\": 5}}\n"));
  json_decref (raw_read (a, NULL)); /* event and return, in either order */
  json_t *m = raw_read (b, NULL);
  cr_assert_str_eq (json_string_value (json_object_get (m, "event")), "EVENT");
  cr_assert_eq (json_integer_value (json_object_get (json_object_get (m, "data"), "k")), 5);
  json_t *stamp = json_object_get (m, "timestamp");
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

  fixture_start (NULL);
  int sock = raw_open ();
  json_t *m
      = raw_call (sock, "{\"execute\": \"large\", \"arguments\": {\"size\": 100000}, \"id\": 7}\n");
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

/* ---- ends ---- */

/* Proves: a client that shuts its sending half still gets every answer, also one that comes
 * later, and then the end. */
control_test (control, half_close)
{
  fixture_start (NULL);
  int a = raw_open ();
  int b = raw_open ();
  raw_send (a, "{\"execute\": \"echo\", \"id\": 1}\n{\"execute\": \"defer\", \"id\": 2}\n");
  shutdown (a, SHUT_WR);
  json_t *m = raw_read (a, NULL);
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
  fixture_start (NULL);
  int sock = raw_open ();
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
  fixture_start (NULL);
  int a = raw_open ();
  int b = raw_open ();
  raw_send (a, "{\"execute\": \"defer\", \"id\": 2}\n");
  wait_until (atomic_load (&fx.commands) == 1);
  close (a);
  wait_until (atomic_load (&fx.closed) == 1);
  json_decref (raw_read (b, NULL)); /* the event CLOSED */
  json_t *m = raw_call (b, "{\"execute\": \"answer\"}\n");
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

  fixture_start (NULL);
  int a = raw_open ();
  int b = raw_open ();
  json_t *m = raw_call (a, "{\"execute\": \"serial\"}\n");
  snprintf (
      line, sizeof line, "{\"execute\": \"close-serial\", \"arguments\": {\"serial\": %lld}}\n",
      (long long)json_integer_value (json_object_get (json_object_get (m, "return"), "serial")));
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
  fixture_start (NULL);
  int a = raw_open ();
  int b = raw_open ();
  fixture_stop ();
  cr_assert_eq (atomic_load (&fx.closed), 2);
  cr_assert (raw_ended (a));
  cr_assert (raw_ended (b));
  cr_assert_eq (access (fx.path, F_OK), -1);
  close (a);
  close (b);
}

/* Proves: the caller's descriptors are waited for and reported. */
control_test (control, extra_descriptors)
{
  static const struct control_server_ops none = { 0 };
  struct pollfd extra[2];
  char *error;
  int p[2];

  cr_assert_eq (pipe (p), 0);
  struct control_server *s = control_server_new (fx.path, "x", &none, NULL, &error);
  extra[0] = (struct pollfd){ .fd = p[0], .events = POLLIN, .revents = POLLHUP };
  extra[1] = (struct pollfd){ .fd = -1 };
  int64_t begin = clock_ms ();
  cr_assert_eq (control_server_poll (s, 50, extra, 2), 0);
  cr_assert_geq (clock_ms () - begin, 49);
  cr_assert_eq (extra[0].revents, 0);
  cr_assert_eq (write (p[1], "x", 1), 1);
  cr_assert_eq (control_server_poll (s, 5000, extra, 2), 0);
  cr_assert_eq (extra[0].revents, POLLIN);
  cr_assert_lt (clock_ms () - begin, 4000);
  control_server_free (s);
  close (p[0]);
  close (p[1]);
}
