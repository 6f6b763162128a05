/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Who gets a place at the control server, and who has to give way.
 */

#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/unit/control-fixture.h"
#include "tests/unit/unit.h"

static bool
is_refused (int sock, const char *reason)
{
  json_t *m = raw_read (sock, NULL);
  bool refused = error_desc (m) != NULL;

  if (refused)
    cr_assert_not_null (strstr (error_desc (m), reason), "%s", error_desc (m));
  else
    cr_assert_not_null (json_object_get (m, "QMP"));
  json_decref (m);
  return refused;
}

/* Proves: beyond the last place clients are told why and cut off; a place that is given up can
 * be taken again; a client that was cut off does not keep its place. */
control_test (limits, all_places_taken)
{
  struct control_limits l = fixture_limits;
  int socks[5];

  l.max_peers = 5;
  l.reserved = 0;
  l.linger_ms = 60000;
  fixture_start (&l);
  for (int i = 0; i < 5; i++)
    socks[i] = raw_open ();
  int extra = raw_connect ();
  cr_assert (is_refused (extra, "too many clients"));
  cr_assert (raw_ended (extra));
  close (extra);
  cr_assert_eq (atomic_load (&fx.closed), 0, "one that was never admitted was reported");

  close (socks[0]);
  wait_until (atomic_load (&fx.closed) == 1);
  socks[0] = raw_open ();
  json_t *m = raw_call (socks[0], "{\"execute\": \"close\"}\n");
  json_decref (m);
  wait_until (atomic_load (&fx.closed) == 2);
  extra = raw_open (); /* while socks[0] is still open and lingers */
  for (int i = 0; i < 5; i++)
    close (socks[i]);
  close (extra);
}

/* Proves: of the places some are kept for root and the worker.  Needs root, to be two users. */
control_test (limits, reserved_places)
{
  struct control_limits l = fixture_limits;
  int socks[3], root;

  if (geteuid () != 0)
    skip_test ("needs root");
  l.max_peers = 4;
  l.reserved = 1;
  cr_assert_eq (chown (fx.dir, 65534, -1), 0);
  cr_assert_eq (seteuid (65534), 0);
  fixture_start (&l);
  for (int i = 0; i < 3; i++)
    socks[i] = raw_open ();
  int extra = raw_connect ();
  cr_assert (is_refused (extra, "too many clients"));
  close (extra);

  cr_assert_eq (seteuid (0), 0);
  root = raw_open ();
  cr_assert_eq (seteuid (65534), 0);
  close (root);
  wait_until (atomic_load (&fx.closed) == 1);

  /* The worker's connection no longer counts as a common one. */
  raw_send (socks[0], "{\"execute\": \"worker\"}\n");
  for (bool answered = false; !answered;) {
    json_t *m = raw_read (socks[0], NULL);

    answered = json_object_get (m, "return") != NULL;
    json_decref (m);
  }
  extra = raw_open ();
  close (extra);
  wait_until (atomic_load (&fx.closed) == 2);

  for (int i = 0; i < 3; i++)
    close (socks[i]);
  fixture_stop ();
  cr_assert_eq (seteuid (0), 0);
}

/* Proves: only root and the server's user are served, even where the file's mode lets others
 * connect. */
control_test (limits, other_users)
{
  char verdict = '?';
  int pair[2];

  if (geteuid () != 0)
    skip_test ("needs root");
  fixture_start (&fixture_limits);
  cr_assert_eq (chmod (fx.dir, 0755), 0);
  cr_assert_eq (chmod (fx.path, 0666), 0);
  cr_assert_eq (pipe (pair), 0);
  pid_t child = fork ();
  cr_assert_neq (child, -1);
  if (child == 0) {
    if (setuid (65534) == 0) {
      int sock = raw_connect ();

      verdict = is_refused (sock, "only root and the user") && raw_ended (sock) ? 'r' : 'a';
    }
    (void)!write (pair[1], &verdict, 1);
    _exit (0);
  }
  cr_assert_eq (read (pair[0], &verdict, 1), 1);
  cr_assert_eq (waitpid (child, NULL, 0), child);
  cr_assert_eq (verdict, 'r', "verdict %c", verdict);
  close (pair[0]);
  close (pair[1]);
  cr_assert_eq (atomic_load (&fx.closed), 0);
}

/* Skip the events CLOSED that the fixture sends, and read the next line. */
static json_t *
read_answer (int sock)
{
  json_t *m = raw_read (sock, NULL);

  while (m != NULL && json_object_get (m, "event") != NULL) {
    json_decref (m);
    m = raw_read (sock, NULL);
  }
  return m;
}

static void
expect_service (int sock)
{
  raw_send (sock, "{\"execute\": \"echo\"}\n");
  json_t *m = read_answer (sock);
  cr_assert_not_null (m);
  cr_assert_not_null (json_object_get (m, "return"));
  json_decref (m);
}

enum { NEEDED, WORKER, WAITING, IDLE, LATER, NR };

/* Start a server with the limits L, and one client of each kind. */
static void
take_all_places (const struct control_limits *l, int socks[NR])
{
  fixture_start (l);
  for (int i = 0; i < NR; i++)
    socks[i] = raw_open ();
  json_decref (raw_call (socks[NEEDED], "{\"execute\": \"needed\"}\n"));
  json_decref (raw_call (socks[WORKER], "{\"execute\": \"worker\"}\n"));
  raw_send (socks[WAITING], "{\"execute\": \"defer\"}\n");
}

/* Proves: where all places are taken, the client that has been silent for longest gives way, once
 * that is long enough.  It is told why.  One that waits for an answer, the worker, and one on whose
 * connection something hangs keep their places. */
control_test (limits, idle_gives_way)
{
  struct control_limits l = fixture_limits;
  int socks[NR];

  l.max_peers = NR;
  l.reserved = 0;
  l.idle_ms = 60000;
  take_all_places (&l, socks);
  expect_service (socks[LATER]);
  int extra = raw_connect ();
  cr_assert (is_refused (extra, "too many clients"), "none was silent for long");
  close (extra);
  fixture_stop ();
  for (int i = 0; i < NR; i++)
    close (socks[i]);

  l.idle_ms = 100;
  take_all_places (&l, socks);
  fixture_sleep_ms (2);
  expect_service (socks[LATER]);
  fixture_sleep_ms (150);
  extra = raw_open ();
  json_t *m = read_answer (socks[IDLE]);
  cr_assert_not_null (m);
  cr_assert_not_null (strstr (error_desc (m), "was idle"), "%s", error_desc (m));
  json_decref (m);
  cr_assert (raw_ended (socks[IDLE]));
  expect_service (socks[NEEDED]);
  expect_service (socks[WORKER]);
  expect_service (socks[LATER]);
  expect_service (extra);
  raw_send (extra, "{\"execute\": \"answer\"}\n");
  m = read_answer (socks[WAITING]);
  cr_assert_not_null (m);
  cr_assert_not_null (json_object_get (m, "return"));
  json_decref (m);
  for (int i = 0; i < NR; i++)
    close (socks[i]);
  close (extra);
}
