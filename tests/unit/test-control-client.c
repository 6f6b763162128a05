/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The client side: against the real server, and against sockets that answer nothing or nonsense.
 */

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "control/client.h"
#include "control/wire.h"
#include "tests/unit/control-fixture.h"
#include "tests/unit/unit.h"

static struct control_client *
connected (void)
{
  char *error;
  struct control_client *c = control_client_connect (fx.path, 5000, &error);

  cr_assert_not_null (c, "%s", error);
  return c;
}

#define CALL_MS 5000

#define run_command(client, error, ...)                                                            \
  control_client_call (client, &(struct control_call){ __VA_ARGS__ }, error)

static json_t *
call (struct control_client *c, const char *name, json_t *args)
{
  char *error;
  json_t *ret;

  cr_assert_eq (
      run_command (c, &error, .command = name, .args = args, .ret = &ret, .timeout_ms = CALL_MS), 0,
      "%s", error);
  return ret;
}

/* Proves: arguments and results pass, and an error brings the server's words and class. */
control_test (client, call)
{
  char *error, *class_;

  fixture_start (NULL);
  struct control_client *c = connected ();
  json_t *ret = call (c, "echo", json_pack ("{s:i}", "k", 5));
  cr_assert_eq (json_integer_value (json_object_get (ret, "k")), 5);
  json_decref (ret);
  json_decref (call (c, "echo", NULL));
  cr_assert_eq (run_command (c, &error, .command = "nonsense", .ret = &ret, .class_ = &class_,
                             .timeout_ms = CALL_MS),
                -1);
  cr_assert_null (ret);
  cr_assert_str_eq (class_, "CommandNotFound");
  cr_assert_str_eq (error, "The command nonsense has not been found");
  text_free (class_);
  text_free (error);
  /* Nothing to return anything to. */
  cr_assert_eq (run_command (c, &error, .command = "echo", .timeout_ms = CALL_MS), 0);
  control_client_free (c);
}

/* Proves: descriptors pass both ways; the caller keeps its own; one that nobody asked for is
 * closed. */
control_test (client, descriptors)
{
  struct stat mine, back;
  char *error;
  json_t *ret;
  int p[2], got;

  fixture_start (NULL);
  struct control_client *c = connected ();
  cr_assert_eq (pipe (p), 0);
  fstat (p[0], &mine);
  unsigned before = count_fds ();
  cr_assert_eq (run_command (c, &error, .command = "fd", .pass_fd = &p[0], .ret = &ret,
                             .got_fd = &got, .timeout_ms = CALL_MS),
                0);
  cr_assert_neq (got, -1);
  cr_assert_neq (got, p[0]);
  fstat (got, &back);
  cr_assert_eq (mine.st_ino, back.st_ino);
  close (got);
  json_decref (ret);
  cr_assert_eq (run_command (c, &error, .command = "fd", .got_fd = &got, .timeout_ms = CALL_MS), 0);
  cr_assert_eq (got, -1);
  cr_assert_eq (run_command (c, &error, .command = "fd", .pass_fd = &p[0], .timeout_ms = CALL_MS),
                0);
  cr_assert_neq (fcntl (p[0], F_GETFD), -1);
  wait_until (count_fds () == before); /* the server closes its copies when it gets to it */
  control_client_free (c);
}

/* Proves: events that come during a call are kept, in order; without any the wait ends in time. */
control_test (client, events)
{
  char *name, *error;
  json_t *data;

  fixture_start (NULL);
  struct control_client *c = connected ();
  for (int i = 0; i < 5; i++)
    json_decref (call (c, "event", json_pack ("{s:i}", "k", i)));
  for (int i = 0; i < 5; i++) {
    cr_assert (control_client_has_event (c));
    cr_assert_eq (control_client_next_event (c, 0, &name, &data, &error), 1);
    cr_assert_str_eq (name, "EVENT");
    cr_assert_eq (json_integer_value (json_object_get (data, "k")), i);
    free (name);
    json_decref (data);
  }
  cr_assert_not (control_client_has_event (c));
  cr_assert_eq (control_client_next_event (c, 0, &name, &data, &error), 0);
  int64_t begin = clock_ms ();
  cr_assert_eq (control_client_next_event (c, 100, &name, &data, &error), 0);
  cr_assert_geq (clock_ms () - begin, 99);
  control_client_free (c);
}

/* Proves: of commands sent without waiting only the errors are heard, with the command's name. */
control_test (client, send)
{
  char *name, *error;
  json_t *data;

  fixture_start (NULL);
  struct control_client *c = connected ();
  cr_assert_eq (control_client_send (c, "echo", json_pack ("{s:i}", "a", 1), &error), 0);
  cr_assert_eq (control_client_send (c, "nonsense", NULL, &error), 0);
  cr_assert_eq (control_client_send (c, "echo", NULL, &error), 0);
  cr_assert_eq (control_client_next_event (c, 5000, &name, &data, &error), 1);
  cr_assert_str_eq (name, "ERROR");
  cr_assert_str_eq (json_string_value (json_object_get (data, "execute")), "nonsense");
  cr_assert_str_eq (json_string_value (json_object_get (data, "class")), "CommandNotFound");
  free (name);
  json_decref (data);
  cr_assert_eq (control_client_next_event (c, 100, &name, &data, &error), 0);
  control_client_free (c);
}

/* Proves: a caller that only sends, for long, is neither blocked nor dropped. */
control_test (client, send_many)
{
  char *error;

  fixture_start (&fixture_limits);
  struct control_client *c = connected ();
  for (int i = 0; i < 20000; i++)
    cr_assert_eq (control_client_send (c, "echo", NULL, &error), 0, "%s", error);
  json_decref (call (c, "echo", NULL));
  cr_assert_eq (atomic_load (&fx.commands), 20001);
  control_client_free (c);
}

/* Proves: the same with pauses, so that it never blocks: sending takes in the answers as well, else
 * the server would find that this client does not read. */
control_test (client, send_now_and_then)
{
  struct control_limits l = fixture_limits;
  char *error;

  l.output_ms = 1000;
  fixture_start (&l);
  struct control_client *c = connected ();
  for (int i = 0; i < 20; i++) {
    for (int k = 0; k < 50; k++)
      cr_assert_eq (control_client_send (c, "echo", NULL, &error), 0, "%s", error);
    fixture_sleep_ms (100);
  }
  json_decref (call (c, "echo", NULL));
  cr_assert_eq (atomic_load (&fx.commands), 1001);
  control_client_free (c);
}

/* Proves: a call that timed out does not take its late answer for the next one's. */
control_test (client, call_timeout)
{
  char *error, *class_;
  json_t *ret;

  fixture_start (NULL);
  struct control_client *c = connected ();
  int64_t begin = clock_ms ();
  cr_assert_eq (run_command (c, &error, .command = "defer", .ret = &ret, .class_ = &class_,
                             .timeout_ms = 100),
                -1);
  cr_assert_geq (clock_ms () - begin, 99);
  cr_assert_not_null (strstr (error, "no answer to defer in time"), "%s", error);
  cr_assert_eq (strncmp (error, fx.path, strlen (fx.path)), 0);
  cr_assert_null (class_);
  text_free (error);
  ret = call (c, "answer", NULL); /* the late one is on the wire first */
  cr_assert (json_is_true (json_object_get (ret, "found")));
  json_decref (ret);
  ret = call (c, "echo", json_pack ("{s:i}", "k", 1));
  cr_assert_not_null (json_object_get (ret, "k"));
  json_decref (ret);
  control_client_free (c);
}

/* Proves: a command that fits into no line is refused before anything is sent. */
control_test (client, command_too_long)
{
  char *error, *text = malloc (70001);

  fixture_start (NULL);
  struct control_client *c = connected ();
  memset (text, 'x', 70000);
  text[70000] = '\0';
  cr_assert_eq (run_command (c, &error, .command = "echo", .args = json_pack ("{s:s}", "t", text),
                             .timeout_ms = CALL_MS),
                -1);
  cr_assert_not_null (strstr (error, "too long"), "%s", error);
  text_free (error);
  cr_assert_eq (control_client_send (c, "echo", json_pack ("{s:s}", "t", text), &error), -1);
  text_free (error);
  json_decref (call (c, "echo", NULL));
  control_client_free (c);
  free (text);
}

/* Proves: when the server goes, events that came before are still delivered, then every call
 * says why. */
control_test (client, server_ends)
{
  char *name, *error;
  json_t *data;

  fixture_start (NULL);
  struct control_client *c = connected ();
  json_decref (call (c, "event", NULL));
  fixture_stop ();
  cr_assert_eq (control_client_next_event (c, 5000, &name, &data, &error), 1);
  cr_assert_str_eq (name, "EVENT");
  free (name);
  json_decref (data);
  cr_assert_eq (control_client_next_event (c, 5000, &name, &data, &error), -1);
  cr_assert_not_null (strstr (error, "the server closed the connection"), "%s", error);
  text_free (error);
  cr_assert_eq (run_command (c, &error, .command = "echo", .timeout_ms = CALL_MS), -1);
  cr_assert_not_null (strstr (error, fx.path), "%s", error);
  text_free (error);
  cr_assert_eq (control_client_send (c, "echo", json_object (), &error), -1);
  text_free (error);
  control_client_free (c);
}

/* Proves: a call is answered, not hung, when the server closes the connection instead. */
control_test (client, closed_during_a_call)
{
  char *error;

  fixture_start (NULL);
  struct control_client *c = connected ();
  cr_assert_eq (run_command (c, &error, .command = "close", .timeout_ms = CALL_MS), 0);
  cr_assert_eq (run_command (c, &error, .command = "echo", .timeout_ms = CALL_MS), -1);
  cr_assert_not_null (strstr (error, "closed the connection"), "%s", error);
  text_free (error);
  control_client_free (c);
}

/* ---- servers that are none ---- */

static void
expect_no_connection (const char *path, int timeout_ms, const char *reason)
{
  int64_t begin = clock_ms ();
  char *error;

  cr_assert_null (control_client_connect (path, timeout_ms, &error));
  cr_assert_eq (strncmp (error, path, strlen (path)), 0, "%s", error);
  cr_assert_not_null (strstr (error, reason), "%s", error);
  cr_assert_lt ((int64_t)(clock_ms () - begin), timeout_ms + 2000);
  text_free (error);
}

/* Proves: whatever is wrong at the path is said in words. */
control_test (client, nobody_there)
{
  char path[200];
  int sock = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_un sa;
  char *error;

  expect_no_connection (fx.path, 1000, "no such control socket (is the server running?)");
  expect_no_connection ("nbd://hostb/", 1000, "this is a URI, not a control socket");
  cr_assert_eq (wire_address (fx.path, &sa, &error), 0);
  cr_assert_eq (bind (sock, (struct sockaddr *)&sa, sizeof sa), 0);
  expect_no_connection (fx.path, 1000, "nobody is listening (the server has ended)");
  close (sock);
  unlink (fx.path);
  close (open (fx.path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
  expect_no_connection (fx.path, 1000, "not a socket");
  memset (path, 'x', sizeof path);
  path[0] = '/';
  path[sizeof path - 1] = '\0';
  expect_no_connection (path, 1000, "too long");
}

static int
dumb_server (int backlog)
{
  int sock = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_un sa;
  char *error;

  cr_assert_eq (wire_address (fx.path, &sa, &error), 0);
  cr_assert_eq (bind (sock, (struct sockaddr *)&sa, sizeof sa), 0);
  cr_assert_eq (listen (sock, backlog), 0);
  return sock;
}

/* Proves: connecting to a stopped server ends in time: no greeting, then a full queue. */
control_test (client, stopped_server)
{
  int server = dumb_server (0), queued[2];

  expect_no_connection (fx.path, 200, "no answer to the connection in time");
  for (int i = 0; i < 2; i++) {
    struct sockaddr_un sa;
    char *error;

    queued[i] = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    wire_address (fx.path, &sa, &error);
    (void)!connect (queued[i], (struct sockaddr *)&sa, sizeof sa);
  }
  expect_no_connection (fx.path, 200, "the server accepts no connection");
  for (int i = 0; i < 2; i++)
    close (queued[i]);
  close (server);
}

/* What the thread of a dumb server says to its one client. */
static const char *script;

static void *
recite (void *arg)
{
  int sock = accept (*(int *)arg, NULL, NULL);
  char buf[100];

  raw_send (sock, script);
  shutdown (sock, SHUT_WR);
  while (read (sock, buf, sizeof buf) > 0)
    ;
  close (sock);
  return NULL;
}

static void
expect_for_script (const char *text, const char *reason)
{
  int server = dumb_server (5);
  pthread_t thread;

  script = text;
  cr_assert_eq (pthread_create (&thread, NULL, recite, &server), 0);
  expect_no_connection (fx.path, 2000, reason);
  pthread_join (thread, NULL);
  close (server);
  unlink (fx.path);
}

/* Proves: servers of other protocols, and refusals, are told apart. */
control_test (client, wrong_servers)
{
  expect_for_script ("", "the server closed the connection");
  expect_for_script ("220 ready\n", "does not speak the control protocol");
  expect_for_script ("NBDMAGIC\n", "this is an NBD socket, not a control socket");
  expect_for_script ("{\"error\": {\"class\": \"GenericError\", \"desc\": \"too many clients\"}}\n",
                     "too many clients");
  expect_for_script ("{\"error\": 1}\n", "unknown error");
  expect_for_script ("{\"QMP\": {}}\n", "the server closed the connection");
  expect_for_script ("{\"QMP\": {}}\n{\"id\": 1}\n", "does not speak the control protocol");
  expect_for_script ("{\"QMP\": {}}\n{\"id\": 1, \"error\": {\"desc\": \"not you\"}}\n", "not you");
}

/* Proves: what a server says before it closes is the reason that the client reports. */
control_test (client, last_words)
{
  int server = dumb_server (5);
  pthread_t thread;
  char *name, *error;
  json_t *data;

  script
      = "{\"QMP\": {}}\n{\"id\": 1, \"return\": {}}\n"
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"the disk is about to go away\"}}\n";
  cr_assert_eq (pthread_create (&thread, NULL, recite, &server), 0);
  struct control_client *c = connected ();
  cr_assert_eq (control_client_next_event (c, 2000, &name, &data, &error), -1);
  cr_assert_not_null (strstr (error, "the disk is about to go away"), "%s", error);
  text_free (error);
  control_client_free (c);
  pthread_join (thread, NULL);
  close (server);
}

/* Proves: a client that is refused for want of places hears the reason. */
control_test (client, refused_by_the_real_server)
{
  struct control_limits l = fixture_limits;

  l.max_peers = 1;
  l.reserved = 0;
  fixture_start (&l);
  struct control_client *c = connected ();
  expect_no_connection (fx.path, 1000, "too many clients");
  control_client_free (c);
}
